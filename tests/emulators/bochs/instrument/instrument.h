/* hvdetect lab: Bochs instrumentation, interface.
 *
 * Bochs calls the BX_INSTR_* macros at fixed places of its source; each is
 * empty here unless the lab needs it, so that an instruction costs one test of
 * one global. What the hooks do, and the protocol with the host, stands at the
 * top of instrument.cc.
 *
 * Licence: MIT OR Apache-2.0, as the rest of the project; the emulator that it
 * is compiled into is LGPL-2.1-or-later.
 */
#ifndef HVDETECT_LAB_INSTRUMENT_H
#define HVDETECT_LAB_INSTRUMENT_H

#if BX_INSTRUMENTATION

class bxInstruction_c;
struct cpuid_function_t;

// Not zero while instructions are counted by physical frame.
extern unsigned lab_count_frames;

void lab_init(unsigned cpu);
void lab_retired(unsigned cpu);
void lab_interrupt(unsigned cpu, unsigned vector);
void lab_tlb_control(unsigned cpu, unsigned what, Bit64u argument);
void lab_vmexit(unsigned cpu, Bit32u reason, Bit64u qualification);
void lab_svm_vmexit(unsigned cpu, int code, Bit64u info1, Bit64u info2);
void lab_wrmsr(unsigned cpu, unsigned index, Bit64u value);
void lab_out(Bit16u port, unsigned len, unsigned value);
void lab_cpuid(unsigned cpu, Bit32u function, struct cpuid_function_t *leaf);

#define BX_INSTR_INITIALIZE(cpu) lab_init(cpu)
#define BX_INSTR_AFTER_EXECUTION(cpu, i) \
  do { \
    if (__builtin_expect(lab_count_frames, 0)) lab_retired(cpu); \
  } while (0)
#define BX_INSTR_HWINTERRUPT(cpu, vector, cs, eip) lab_interrupt(cpu, vector)
#define BX_INSTR_TLB_CNTRL(cpu, what, argument) lab_tlb_control(cpu, what, argument)
#define BX_INSTR_VMEXIT(cpu, reason, qualification) lab_vmexit(cpu, reason, qualification)
#define BX_INSTR_WRMSR(cpu, index, value) lab_wrmsr(cpu, index, value)
#define BX_INSTR_OUTP(port, len, value) lab_out(port, len, value)
// Called by the lab's own patch.
#define BX_INSTR_SVM_VMEXIT(cpu, code, info1, info2) lab_svm_vmexit(cpu, code, info1, info2)
#define BX_INSTR_CPUID(cpu, function, leaf) lab_cpuid(cpu, function, leaf)

#else

#define BX_INSTR_INITIALIZE(cpu)
#define BX_INSTR_AFTER_EXECUTION(cpu, i)
#define BX_INSTR_HWINTERRUPT(cpu, vector, cs, eip)
#define BX_INSTR_TLB_CNTRL(cpu, what, argument)
#define BX_INSTR_VMEXIT(cpu, reason, qualification)
#define BX_INSTR_WRMSR(cpu, index, value)
#define BX_INSTR_OUTP(port, len, value)
#define BX_INSTR_SVM_VMEXIT(cpu, code, info1, info2)
#define BX_INSTR_CPUID(cpu, function, leaf) (void) function

#endif

// Hooks that the lab has no use for.
#define BX_INSTR_INIT_ENV()
#define BX_INSTR_EXIT_ENV()
#define BX_INSTR_EXIT(cpu)
#define BX_INSTR_RESET(cpu, type)
#define BX_INSTR_HLT(cpu)
#define BX_INSTR_MWAIT(cpu, addr, len, flags)
#define BX_INSTR_DEBUG_PROMPT()
#define BX_INSTR_DEBUG_CMD(cmd)
#define BX_INSTR_CNEAR_BRANCH_TAKEN(cpu, from, to)
#define BX_INSTR_CNEAR_BRANCH_NOT_TAKEN(cpu, from)
#define BX_INSTR_UCNEAR_BRANCH(cpu, what, from, to)
#define BX_INSTR_FAR_BRANCH(cpu, what, from_cs, from, to_cs, to)
#define BX_INSTR_OPCODE(cpu, i, opcode, len, is32, is64)
#define BX_INSTR_EXCEPTION(cpu, vector, error_code)
#define BX_INSTR_INTERRUPT(cpu, vector)
#define BX_INSTR_CLFLUSH(cpu, laddr, paddr)
#define BX_INSTR_CACHE_CNTRL(cpu, what)
#define BX_INSTR_PREFETCH_HINT(cpu, what, seg, offset)
#define BX_INSTR_BEFORE_EXECUTION(cpu, i)
#define BX_INSTR_REPEAT_ITERATION(cpu, i)
#define BX_INSTR_LIN_ACCESS(cpu, lin, phy, len, memtype, rw)
#define BX_INSTR_PHY_ACCESS(cpu, phy, len, memtype, rw)
#define BX_INSTR_INP(port, len)
#define BX_INSTR_INP2(port, len, value)

#endif
