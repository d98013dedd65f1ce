/* hvdetect lab: Bochs instrumentation.
 *
 * What the lab's host program needs from the emulator and cannot have from
 * outside: an exit code, exact counts, the state of every processor and of
 * guest-physical memory at any point, and the answer to "how many instructions
 * of this page retired before the hypervisor saw it".
 *
 * The machine's side is three ports:
 *   0xE5 (any width)  end the emulator with this exit code, at once (the machine
 *                     drains its serial lines first);
 *   0xE6 (32 bits)    bit 31 clear: a mark, a snapshot of all counters under
 *                     that number; bit 31 set: write checkpoint-N.bin;
 *   0xE7 (32 bits)    twice, low half then high half of a physical address:
 *                     count guest instructions retired from its frame, beginning
 *                     with zero now.
 *
 * The host's side is a Unix socket whose path stands in HVDETECT_LAB_CONTROL:
 * one connection, one line, one answer (JSON). Commands: `counters`, `marks`,
 * `fetches`, `registers`, `checkpoint PATH`, `count-frames`, `profile`,
 * `quit CODE`. `profile` answers how often each address was executed in root mode
 * since it was last asked, and begins anew; the first time it only begins.
 * HVDETECT_LAB_COUNT_FRAMES=1 counts frames from the start;
 * HVDETECT_LAB_CPUID changes answers of CPUID: "FUNCTION REGISTER KEEP SET", in
 * hexadecimal, several separated by semicolons; the registers EAX to EDX have the
 * numbers 0 to 3.
 * SIGTERM writes the registers and counters to the files `registers.json` and
 * `counters.json` of the working directory and ends the emulator.
 *
 * All of it runs on Bochs's only simulation thread. Commands are served from a
 * timer, that is between two instructions of every processor, so a checkpoint
 * is consistent; the signal handler only sets a flag.
 *
 * Besides, per processor: `launch`, the instructions from the write that set
 * CR4.VMXE (on AMD: EFER.SVME) to the first VM entry, and `leave`, those from the
 * last VM exit to the write that cleared it; `root_by_exit`, the root instructions
 * by the reason of the exit that began their interval.
 *
 * Intel and AMD give the same names. `exits` has VMX's basic exit reasons or SVM's
 * exit codes (VMEXIT_INVALID is -1); of the two ways to flush, `invept` and
 * `invvpid` count VMX's instructions, `tlb_control` the VMRUNs whose VMCB asked for
 * one. Of a processor with SVM, `registers` has `vmcb` (of the last VMRUN), `ncr3`
 * (0 without nested paging) and `eptp` is absent, and the other way round.
 *
 * Counting. Bochs counts instructions per processor (`icount`); a VM exit adds
 * one that is no instruction. `guest` is the sum over the intervals from VM
 * entry to VM exit, `root` over those from exit to the next entry, without that
 * extra one: both are exact, whatever the quantum.
 */

#include "bochs.h"
#include "cpu/cpu.h"
#include "cpu/cpuid.h"
#include "cpu/msr.h"
#if BX_SUPPORT_SVM
#include "cpu/svm.h"
#endif
#include "memory/memory-bochs.h"
#include "pc_system.h"

#if BX_INSTRUMENTATION

#include <cerrno>
#include <csignal>
#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <string>
#include <unordered_map>
#include <vector>

#include <fcntl.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

unsigned lab_count_frames = 0;

namespace {

const unsigned MAX_CPUS = 64;
const Bit64u PAGE = 4096;
// How often the host is listened to. A poll is two system calls; at 100 MIPS
// this makes a few thousand polls a second.
const Bit64u POLL_TICKS = 25000;
// What the serial lines get to drain after a triple fault.
const Bit64u DRAIN_TICKS = 100000;
const size_t MAX_FETCH_EVENTS = 1 << 16;
const size_t MAX_MARKS = 1 << 16;
const int EXIT_TERMINATED = 124;
const int EXIT_SHUTDOWN_STATE = 125;

struct Counters {
  Bit64u icount;
  Bit64u guest, root;
  Bit64u invept, invvpid, tlb_control, nmi;
  Bit64u launch, leave;
  std::map<Bit32s, Bit64u> exits, root_by_exit;
};

struct Processor {
  Counters counters;
  Bit64u since;        // icount at the last change of mode
  bool in_guest;       // between VM entry and VM exit
  bool was_in_root;    // an exit was seen, so `since` begins a root interval
  bool exit_pending;   // the exit's own context switch is still to come
  Bit32s last_exit;    // its reason
  Bit64u switched_on;  // icount when CR4.VMXE or EFER.SVME was set, 0 once a guest was entered
};

struct FetchEvent {
  unsigned cpu;
  Bit64u frame, rip, retired;
};

struct Mark {
  Bit32u number;
  std::vector<Counters> cpus;
};

Processor processors[MAX_CPUS];
std::vector<Bit32u> retired_by_frame;
std::vector<FetchEvent> fetch_events;
std::vector<Mark> marks;
Bit64u lost_fetch_events = 0;

std::unordered_map<Bit64u, Bit64u> profile;
bool profiling = false;

struct CpuidChange {
  unsigned function, index, keep, set;
};
std::vector<CpuidChange> cpuid_changes;
bool have_low_half = false;
Bit32u low_half = 0;
int listener = -1;
volatile sig_atomic_t terminate_requested = 0;
bool shutdown_seen = false;
Bit64u exit_at = 0;

unsigned cpu_count() { return BX_SMP_PROCESSORS; }

void append(std::string &out, const char *format, ...)
{
  char text[512];
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(text, sizeof text, format, arguments);
  va_end(arguments);
  out += text;
}

unsigned long long u(Bit64u value) { return value; }

// ---- counting ---------------------------------------------------------------

void account(unsigned cpu)
{
  Processor &p = processors[cpu];
  Bit64u now = BX_CPU(cpu)->get_icount();
  if (p.in_guest) p.counters.guest += now - p.since;
  else if (p.was_in_root) {
    p.counters.root += now - p.since;
    p.counters.root_by_exit[p.last_exit] += now - p.since;
  }
  p.since = now;
}

void enter_guest(unsigned cpu)
{
  Processor &p = processors[cpu];
  account(cpu);
  p.in_guest = true;
  if (p.switched_on) {
    p.counters.launch = p.since - p.switched_on;
    p.switched_on = 0;
  }
}

// The virtualization extensions are switched on or off outside of a guest.
void switched(unsigned cpu, bool on)
{
  Processor &p = processors[cpu];
  if (p.in_guest) return;
  Bit64u now = BX_CPU(cpu)->get_icount();
  if (on && !p.was_in_root) p.switched_on = now;
  if (!on && p.was_in_root) {
    p.counters.leave = now - p.since;
    p.was_in_root = false;
  }
}

void leave_guest(unsigned cpu, Bit32s reason)
{
  account(cpu);
  Processor &p = processors[cpu];
  p.in_guest = false;
  p.was_in_root = true;
  p.last_exit = reason;
  p.since += 1; // the tick that the exit itself costs
  p.counters.exits[reason] += 1;
}

Counters snapshot(unsigned cpu)
{
  Counters c = processors[cpu].counters;
  c.icount = BX_CPU(cpu)->get_icount();
  if (processors[cpu].in_guest) c.guest += c.icount - processors[cpu].since;
  return c;
}

void map_json(std::string &out, const char *name, const std::map<Bit32s, Bit64u> &map)
{
  append(out, ",\"%s\":{", name);
  bool first = true;
  for (const auto &entry : map) {
    append(out, "%s\"%d\":%llu", first ? "" : ",", (int) entry.first, u(entry.second));
    first = false;
  }
  out += "}";
}

void counters_json(std::string &out, const std::vector<Counters> &all)
{
  out += "[";
  for (size_t n = 0; n < all.size(); n++) {
    const Counters &c = all[n];
    append(out, "%s{\"total\":%llu,\"guest\":%llu,\"root\":%llu,\"invept\":%llu,\"invvpid\":%llu,\"tlb_control\":%llu,\"nmi\":%llu,\"launch\":%llu,\"leave\":%llu",
           n ? "," : "", u(c.icount), u(c.guest), u(c.root), u(c.invept), u(c.invvpid), u(c.tlb_control), u(c.nmi), u(c.launch), u(c.leave));
    map_json(out, "exits", c.exits);
    map_json(out, "root_by_exit", c.root_by_exit);
    out += "}";
  }
  out += "]";
}

std::vector<Counters> snapshot_all()
{
  std::vector<Counters> all;
  for (unsigned n = 0; n < cpu_count(); n++) all.push_back(snapshot(n));
  return all;
}

bool has_svm(unsigned cpu)
{
#if BX_SUPPORT_SVM
  return BX_CPU(cpu)->is_cpu_extension_supported(BX_ISA_SVM);
#else
  (void) cpu;
  return false;
#endif
}

// An exit for an instruction fetch: what had retired from its frame until now.
void fetch_stopped(unsigned cpu, Bit64u address)
{
  Bit64u frame = address / PAGE;
  if (frame >= retired_by_frame.size()) return;
  if (fetch_events.size() >= MAX_FETCH_EVENTS) {
    lost_fetch_events += 1;
  } else {
    FetchEvent e = {cpu, frame, BX_CPU(cpu)->prev_rip, retired_by_frame[frame]};
    fetch_events.push_back(e);
  }
  retired_by_frame[frame] = 0;
}

void count_frames()
{
  if (retired_by_frame.empty())
    retired_by_frame.resize((BX_MEM(0)->get_memory_len() + PAGE - 1) / PAGE);
  lab_count_frames = 1;
}

// ---- state ------------------------------------------------------------------

void registers_json(std::string &out)
{
  static const char *names[16] = {
    "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi",
    "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15",
  };
  out += "[";
  for (unsigned n = 0; n < cpu_count(); n++) {
    BX_CPU_C *c = BX_CPU(n);
    const char *mode = "off";
    const char *vendor = "none";
#if BX_SUPPORT_VMX
    if (c->in_vmx) {
      vendor = "vmx";
      mode = c->in_vmx_guest ? "guest" : "root";
    }
#endif
#if BX_SUPPORT_SVM
    if (processors[n].was_in_root || processors[n].in_guest || c->in_svm_guest) {
      if (!strcmp(vendor, "none") && c->efer.get_SVME()) {
        vendor = "svm";
        mode = c->in_svm_guest ? "guest" : "root";
      }
    }
#endif
    append(out, "%s{\"cpu\":%u,\"vendor\":\"%s\",\"mode\":\"%s\",\"activity\":%u,\"icount\":%llu",
           n ? "," : "", n, vendor, mode, (unsigned) c->activity_state, u(c->get_icount()));
    append(out, ",\"rip\":%llu,\"rflags\":%llu,\"cr0\":%llu,\"cr2\":%llu,\"cr3\":%llu,\"cr4\":%llu,\"efer\":%llu",
           u(c->prev_rip), u(c->force_flags()), u(c->cr0.get32()), u(c->cr2), u(c->cr3),
           u(c->cr4.get32()), u(c->efer.get32()));
    for (unsigned r = 0; r < 16; r++) append(out, ",\"%s\":%llu", names[r], u(c->get_reg64(r)));
    append(out, ",\"cs\":%u,\"gs_base\":%llu,\"gdtr_base\":%llu,\"gdtr_limit\":%u,\"idtr_base\":%llu,\"idtr_limit\":%u,\"tr_base\":%llu",
           (unsigned) c->sregs[BX_SEG_REG_CS].selector.value, u(c->get_segment_base(BX_SEG_REG_GS)),
           u(c->gdtr.base), (unsigned) c->gdtr.limit, u(c->idtr.base), (unsigned) c->idtr.limit,
           u(c->tr.cache.u.segment.base));
    append(out, ",\"pat\":%llu,\"mtrr_def_type\":%llu,\"mtrr_variable\":[", u(c->msr.pat._u64), u(c->msr.mtrr_deftype));
    for (unsigned m = 0; m < 16; m++) append(out, "%s%llu", m ? "," : "", u(c->msr.mtrrphys[m]));
    append(out, "],\"mtrr_fixed\":[%llu,%llu,%llu", u(c->msr.mtrrfix64k._u64),
           u(c->msr.mtrrfix16k[0]._u64), u(c->msr.mtrrfix16k[1]._u64));
    for (unsigned m = 0; m < 8; m++) append(out, ",%llu", u(c->msr.mtrrfix4k[m]._u64));
    out += "]";
#if BX_SUPPORT_VMX
    if (c->in_vmx) {
      const VMCS_CACHE &v = c->vmcs;
      append(out, ",\"vmxon_region\":%llu,\"vmcs\":%llu,\"eptp\":%llu,\"mbec\":%s,\"mtf\":%s,\"msr_bitmap\":%llu",
             u(c->vmxonptr), u(c->vmcsptr), u(v.eptptr), v.vmexec_ctrls2.MBE_CTRL() ? "true" : "false",
             v.vmexec_ctrls1.MONITOR_TRAP_FLAG() ? "true" : "false", u(v.msr_bitmap_addr));
      append(out, ",\"host_cr3\":%llu,\"host_rsp\":%llu,\"host_rip\":%llu,\"host_gdtr\":%llu,\"host_idtr\":%llu,\"host_tr\":%llu,\"host_fs\":%llu,\"host_gs\":%llu",
             u(v.host_state.cr3), u(v.host_state.rsp), u(v.host_state.rip), u(v.host_state.gdtr_base),
             u(v.host_state.idtr_base), u(v.host_state.tr_base), u(v.host_state.fs_base), u(v.host_state.gs_base));
    }
#endif
#if BX_SUPPORT_SVM
    if (has_svm(n)) {
      append(out, ",\"vm_cr\":%llu,\"vm_hsave_pa\":%llu,\"gif\":%s", u(c->msr.svm_vm_cr),
             u(c->msr.svm_hsave_pa), c->svm_gif ? "true" : "false");
    }
    if (!strcmp(vendor, "svm") && c->vmcb) {
      const SVM_CONTROLS &v = c->vmcb->ctrls;
      const SVM_HOST_STATE &h = c->vmcb->host_state;
      append(out, ",\"vmcb\":%llu,\"ncr3\":%llu,\"iopm\":%llu,\"msrpm\":%llu",
             u(c->vmcbptr), v.nested_paging ? u(v.ncr3) : 0ULL, u(v.iopm_base), u(v.msrpm_base));
      // VMRUN saves neither TR nor the bases of FS and GS: in root mode they are the guest's
      // until VMLOAD.
      append(out, ",\"host_cr3\":%llu,\"host_rsp\":%llu,\"host_rip\":%llu,\"host_gdtr\":%llu,\"host_gdtr_limit\":%u,\"host_idtr\":%llu",
             u(h.cr3), u(h.rsp), u(h.rip), u(h.gdtr.base), (unsigned) h.gdtr.limit, u(h.idtr.base));
    }
#endif
    out += "}";
  }
  out += "]";
}

// Reaches the emulator's list of memory blocks: a block that was never touched
// must not be allocated by looking at it.
struct Memory : BX_MEM_C {
  static bool untouched(Bit64u address)
  {
    BX_MEM_C *memory = BX_MEM(0);
    Bit8u **blocks = memory->*(&Memory::blocks);
    Bit32u size = memory->*(&Memory::block_size);
    return blocks[address / size] == NULL;
  }
};

// A checkpoint file: "HVLABCP1", the length of a JSON text (32 bits), that text
// (see registers_json), then each page that is not all zero as its address
// (64 bits) and its 4096 bytes, then an address of all ones.
bool checkpoint(const std::string &path)
{
  std::string partial = path + ".partial";
  FILE *file = fopen(partial.c_str(), "wb");
  if (!file) return false;
  std::string json = "{\"memory\":";
  Bit64u length = BX_MEM(0)->get_memory_len();
  append(json, "%llu,\"cpus\":", u(length));
  registers_json(json);
  json += ",\"counters\":";
  counters_json(json, snapshot_all());
  json += "}";
  Bit32u json_length = (Bit32u) json.size();
  fwrite("HVLABCP1", 1, 8, file);
  fwrite(&json_length, 1, sizeof json_length, file);
  fwrite(json.data(), 1, json.size(), file);
  static const Bit8u zero[PAGE] = {0};
  Bit8u page[PAGE];
  for (Bit64u address = 0; address < length; address += PAGE) {
    if (address >= 0xa0000 && address < 0x100000) continue; // video memory and ROM
    if (Memory::untouched(address)) continue;
    if (!BX_MEM(0)->dbg_fetch_mem(BX_CPU(0), address, PAGE, page)) continue;
    if (!memcmp(page, zero, PAGE)) continue;
    fwrite(&address, 1, sizeof address, file);
    fwrite(page, 1, PAGE, file);
  }
  Bit64u end = ~(Bit64u) 0;
  fwrite(&end, 1, sizeof end, file);
  bool good = !ferror(file);
  good = (fclose(file) == 0) && good;
  return good && rename(partial.c_str(), path.c_str()) == 0;
}

void write_text(const char *path, const std::string &text)
{
  FILE *file = fopen(path, "w");
  if (!file) return;
  fwrite(text.data(), 1, text.size(), file);
  fclose(file);
}

void finish(int code)
{
  std::string text;
  registers_json(text);
  write_text("registers.json", text);
  text.clear();
  counters_json(text, snapshot_all());
  write_text("counters.json", text);
  fflush(NULL);
  _exit(code);
}

// ---- the host's side --------------------------------------------------------

std::string answer(const std::string &line)
{
  std::string out;
  if (line == "counters") {
    counters_json(out, snapshot_all());
  } else if (line == "marks") {
    out = "[";
    for (size_t n = 0; n < marks.size(); n++) {
      append(out, "%s{\"mark\":%u,\"cpus\":", n ? "," : "", marks[n].number);
      counters_json(out, marks[n].cpus);
      out += "}";
    }
    out += "]";
  } else if (line == "fetches") {
    append(out, "{\"lost\":%llu,\"events\":[", u(lost_fetch_events));
    for (size_t n = 0; n < fetch_events.size(); n++) {
      const FetchEvent &e = fetch_events[n];
      append(out, "%s{\"cpu\":%u,\"frame\":%llu,\"rip\":%llu,\"retired\":%llu}",
             n ? "," : "", e.cpu, u(e.frame), u(e.rip), u(e.retired));
    }
    out += "]}";
  } else if (line == "registers") {
    registers_json(out);
  } else if (line == "count-frames") {
    count_frames();
    out = "{\"ok\":true}";
  } else if (line == "profile") {
    out = "[";
    for (const auto &entry : profile)
      append(out, "%s[%llu,%llu]", out.size() > 1 ? "," : "", u(entry.first), u(entry.second));
    out += "]";
    profile.clear();
    profiling = true;
    lab_count_frames = 1;
  } else if (line.compare(0, 11, "checkpoint ") == 0) {
    out = checkpoint(line.substr(11)) ? "{\"ok\":true}" : "{\"ok\":false}";
  } else if (line.compare(0, 5, "quit ") == 0) {
    finish(atoi(line.c_str() + 5));
  } else {
    out = "{\"error\":\"unknown command\"}";
  }
  out += "\n";
  return out;
}

void serve(int connection)
{
  struct timeval limit = {2, 0};
  setsockopt(connection, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
  setsockopt(connection, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit);
  fcntl(connection, F_SETFL, fcntl(connection, F_GETFL) & ~O_NONBLOCK);
  std::string line;
  char c;
  while (line.size() < 4096 && read(connection, &c, 1) == 1) {
    if (c == '\n') {
      std::string reply = answer(line);
      size_t sent = 0;
      while (sent < reply.size()) {
        ssize_t n = send(connection, reply.data() + sent, reply.size() - sent, MSG_NOSIGNAL);
        if (n <= 0) break;
        sent += (size_t) n;
      }
      break;
    }
    line += c;
  }
  close(connection);
}

void listen_to_host()
{
  const char *path = getenv("HVDETECT_LAB_CONTROL");
  if (!path || !*path) return;
  struct sockaddr_un address;
  memset(&address, 0, sizeof address);
  address.sun_family = AF_UNIX;
  if (strlen(path) >= sizeof address.sun_path) {
    fprintf(stderr, "lab: control path too long\n");
    exit(2);
  }
  strcpy(address.sun_path, path);
  listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  if (listener < 0 || bind(listener, (struct sockaddr *) &address, sizeof address) || listen(listener, 4)) {
    fprintf(stderr, "lab: control socket: %s\n", strerror(errno));
    exit(2);
  }
}

void on_sigterm(int) { terminate_requested = 1; }

void tick(void *)
{
  if (terminate_requested) finish(EXIT_TERMINATED);
  if (shutdown_seen && bx_pc_system.time_ticks() >= exit_at) finish(EXIT_SHUTDOWN_STATE);
  // A processor in the shutdown state (a triple fault) never wakes up again.
  for (unsigned n = 0; n < cpu_count(); n++)
    if (BX_CPU(n)->activity_state == BX_CPU_C::BX_ACTIVITY_STATE_SHUTDOWN && !shutdown_seen) {
      fprintf(stderr, "lab: CPU %u is in the shutdown state (triple fault)\n", n);
      shutdown_seen = true;
      exit_at = bx_pc_system.time_ticks() + DRAIN_TICKS;
    }
  if (listener < 0) return;
  int connection = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
  if (connection >= 0) serve(connection);
}

} // namespace

// ---- hooks ------------------------------------------------------------------

void lab_init(unsigned cpu)
{
  if (cpu != 0) return;
  signal(SIGTERM, on_sigterm);
  const char *count = getenv("HVDETECT_LAB_COUNT_FRAMES");
  if (count && *count == '1') count_frames();
  CpuidChange change;
  const char *at = getenv("HVDETECT_LAB_CPUID");
  while (at && sscanf(at, "%x %x %x %x", &change.function, &change.index, &change.keep,
                      &change.set) == 4) {
    cpuid_changes.push_back(change);
    at = strchr(at, ';');
    if (at) at++;
  }
  listen_to_host();
  bx_pc_system.register_timer_ticks(NULL, tick, POLL_TICKS, true, true, "lab");
}

void lab_retired(unsigned cpu)
{
  BX_CPU_C *c = BX_CPU(cpu);
  if (!processors[cpu].in_guest) {
    if (profiling && processors[cpu].was_in_root) profile[c->prev_rip] += 1;
    return;
  }
  Bit64u frame = c->pAddrFetchPage / PAGE;
  if (frame < retired_by_frame.size()) retired_by_frame[frame] += 1;
}

void lab_interrupt(unsigned cpu, unsigned vector)
{
  if (vector == 2) processors[cpu].counters.nmi += 1;
}

void lab_tlb_control(unsigned cpu, unsigned what, Bit64u argument)
{
  Processor &p = processors[cpu];
  switch (what) {
  case BX_INSTR_MOV_CR4:
    // The bit does not exist on AMD, where EFER says what is on (lab_wrmsr).
    if (!has_svm(cpu)) switched(cpu, (argument & (1u << 13)) != 0);
    break;
  case BX_INSTR_INVEPT:
    p.counters.invept += 1;
    break;
  case BX_INSTR_INVVPID:
    p.counters.invvpid += 1;
    break;
  case BX_INSTR_CONTEXT_SWITCH:
    if (p.exit_pending) {
      p.exit_pending = false;
    } else {
#if BX_SUPPORT_SVM
      // TLB_CONTROL (AMD64 Architecture Programmer's Manual, volume 2, appendix B).
      Bit8u flush = 0;
      if (has_svm(cpu))
        BX_MEM(0)->dbg_fetch_mem(BX_CPU(cpu), BX_CPU(cpu)->vmcbptr + 0x5c, 1, &flush);
      if (flush) p.counters.tlb_control += 1;
#endif
      enter_guest(cpu);
    }
    break;
  default:
    break;
  }
}

void lab_wrmsr(unsigned cpu, unsigned index, Bit64u value)
{
#if BX_SUPPORT_SVM
  if (index == BX_MSR_EFER && has_svm(cpu)) switched(cpu, (value & BX_EFER_SVME_MASK) != 0);
#else
  (void) cpu; (void) index; (void) value;
#endif
}

void lab_vmexit(unsigned cpu, Bit32u reason, Bit64u qualification)
{
  leave_guest(cpu, (Bit32s) (reason & 0xffff));
  processors[cpu].exit_pending = true;
#if BX_SUPPORT_VMX >= 2
  if (lab_count_frames && (reason & 0xffff) == VMX_VMEXIT_EPT_VIOLATION && (qualification & 4))
    fetch_stopped(cpu, BX_CPU(cpu)->VMread64(VMCS_64BIT_GUEST_PHYSICAL_ADDR));
#else
  (void) qualification;
#endif
}

void lab_svm_vmexit(unsigned cpu, int code, Bit64u info1, Bit64u info2)
{
  // A VMRUN whose VMCB is refused exits without ever having entered.
  Processor &p = processors[cpu];
  if (p.in_guest) {
    leave_guest(cpu, code);
  } else {
    p.counters.exits[code] += 1;
    p.since += 1;
  }
  p.exit_pending = true;
#if BX_SUPPORT_SVM
  // EXITINFO1 is the page fault's error code, EXITINFO2 the guest-physical address;
  // bit 32 tells the final access from one of the walk (volume 2, "Nested versus
  // Guest Page Faults, Fault Ordering").
  const Bit64u fetch = 1u << 4, last = (Bit64u) 1 << 32;
  if (lab_count_frames && code == SVM_VMEXIT_NPF && (info1 & fetch) && (info1 & last))
    fetch_stopped(cpu, info2);
#else
  (void) info1; (void) info2;
#endif
}

void lab_cpuid(unsigned, Bit32u function, struct cpuid_function_t *leaf)
{
  Bit32u *const registers[4] = {&leaf->eax, &leaf->ebx, &leaf->ecx, &leaf->edx};
  for (const CpuidChange &change : cpuid_changes) {
    if (change.function != function || change.index > 3) continue;
    Bit32u &value = *registers[change.index];
    value = (value & change.keep) | change.set;
  }
}

void lab_out(Bit16u port, unsigned len, unsigned value)
{
  switch (port) {
  case 0xE5:
    finish((int) (value & 0xff));
    break;
  case 0xE6:
    if (len != 4) break;
    if (value & 0x80000000u) {
      char path[64];
      snprintf(path, sizeof path, "checkpoint-%u.bin", value & 0x7fffffffu);
      checkpoint(path);
    } else if (marks.size() < MAX_MARKS) {
      Mark m = {value, snapshot_all()};
      marks.push_back(m);
    }
    break;
  case 0xE7:
    if (len != 4) break;
    if (!have_low_half) {
      have_low_half = true;
      low_half = value;
      break;
    }
    have_low_half = false;
    count_frames();
    {
      Bit64u frame = (((Bit64u) value << 32) | low_half) / PAGE;
      if (frame < retired_by_frame.size()) retired_by_frame[frame] = 0;
    }
    break;
  default:
    break;
  }
}

#endif
