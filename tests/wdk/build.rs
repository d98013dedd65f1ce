//! Makes the bindings of `src/wdk_sys` from the mingw-w64 DDK headers and from
//! `headers/`, with the options that `wdk-build` gives bindgen, and cuts the
//! result into the files the genuine `wdk-sys` has: types, constants, functions.

use std::{
    collections::BTreeSet,
    env,
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
};

use bindgen::{Builder, CodegenConfig, EnumVariation, Formatter};

/// Where Debian's mingw-w64 has its headers; `HVDETECT_DDK_INCLUDE` overrides.
const MINGW_INCLUDE: &str = "/usr/x86_64-w64-mingw32/include";

/// Functions that drivers import from HAL.dll rather than from ntoskrnl.exe.
const HAL: &[&str] = &["KeQueryPerformanceCounter", "KeStallExecutionProcessor"];

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=headers");
    println!("cargo::rerun-if-env-changed=HVDETECT_DDK_INCLUDE");
    println!("cargo::rerun-if-env-changed=LIBCLANG_PATH");

    find_libclang();
    let include =
        PathBuf::from(env::var_os("HVDETECT_DDK_INCLUDE").unwrap_or(MINGW_INCLUDE.into()));
    assert!(
        include.join("ddk/ntddk.h").exists(),
        "no ddk/ntddk.h in {}: install mingw-w64-x86-64-dev or set HVDETECT_DDK_INCLUDE",
        include.display()
    );
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let table = function_table();
    let header = header(&table);

    let types = generate(&include, &header, CodegenConfig::TYPES);
    let types = signed_enums(&types);
    let wrappers = wrappers(&types, &table);
    let constants = generate(&include, &header, CodegenConfig::VARS);
    let constants = constants
        .lines()
        .filter(|line| !line.starts_with("pub const STATUS_"))
        .fold(String::new(), |text, line| text + line + "\n")
        + &status_codes(&include);
    let functions = generate(
        &include,
        &header,
        (CodegenConfig::TYPES | CodegenConfig::VARS).complement(),
    );

    write(&out, "types.rs", &types);
    write(&out, "constants.rs", &with_imports(&constants));
    write(&out, "ntddk.rs", &with_imports(&corrected(functions)));
    write(&out, "wdf_functions.rs", &wrappers);
}

fn write(out: &Path, name: &str, text: &str) {
    fs::write(out.join(name), text).unwrap_or_else(|error| panic!("cannot write {name}: {error}"));
}

/// Points clang-sys to the newest versioned LLVM when several are installed:
/// a libclang and another version's resource directory do not go together.
fn find_libclang() {
    if env::var_os("LIBCLANG_PATH").is_some() {
        return;
    }
    let mut found: Vec<(u32, PathBuf)> = Vec::new();
    for entry in fs::read_dir("/usr/lib").into_iter().flatten().flatten() {
        let name = entry.file_name();
        let Some(version) = name.to_str().and_then(|name| name.strip_prefix("llvm-")) else {
            continue;
        };
        let library = entry.path().join("lib");
        for file in [
            format!("libclang-{version}.so.1"),
            "libclang.so.1".to_owned(),
            "libclang.so".to_owned(),
        ] {
            let path = library.join(file);
            if let (true, Ok(version)) = (path.exists(), version.parse()) {
                found.push((version, path));
                break;
            }
        }
    }
    if let Some((_, path)) = found.into_iter().max() {
        // SAFETY: a build script's only thread; nothing has read the environment yet.
        unsafe { env::set_var("LIBCLANG_PATH", path) };
    }
}

/// libclang's own headers (`mm_malloc.h`, `stdarg.h`) lie beside the library.
fn resource_directory() -> Option<String> {
    let library = PathBuf::from(env::var_os("LIBCLANG_PATH")?);
    let parent = if library.is_dir() {
        library.as_path()
    } else {
        library.parent()?
    };
    let newest = fs::read_dir(parent.join("clang"))
        .ok()?
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.join("include/stddef.h").exists())
        .max()?;
    Some(format!("-resource-dir={}", newest.display()))
}

/// One row of the KMDF function table.
struct Function {
    name: String,
    result: String,
    parameters: String,
}

fn function_table() -> Vec<Function> {
    let text = fs::read_to_string("headers/kmdf-functions.h").expect("headers/kmdf-functions.h");
    text.lines()
        .filter_map(|line| line.strip_prefix("WDF_FUNCTION("))
        .map(|row| {
            let row = row
                .strip_suffix("))")
                .expect("a row ends with two parentheses");
            let (head, parameters) = row.split_once('(').expect("a row has parameters");
            let mut head = head.split(',').map(str::trim);
            let mut next = || head.next().expect("index, name, result").to_owned();
            let _index = next();
            Function {
                name: next(),
                result: next(),
                parameters: parameters.to_owned(),
            }
        })
        .collect()
}

fn header(table: &[Function]) -> String {
    let mut text = String::from(
        "#include <ntifs.h>\n#include <ntddk.h>\n#include <ntimage.h>\n\
         #include \"newer-nt.h\"\n#include \"kmdf.h\"\n",
    );
    for Function {
        name,
        result,
        parameters,
    } in table
    {
        let upper = name.to_uppercase();
        let parameters = if parameters == "VOID" {
            String::new()
        } else {
            format!(", {parameters}")
        };
        writeln!(
            text,
            "typedef {result} (*PFN_{upper})(PWDF_DRIVER_GLOBALS DriverGlobals{parameters});"
        )
        .expect("a String takes all");
    }
    text
}

fn generate(include: &Path, header: &str, config: CodegenConfig) -> String {
    let builder = if config.intersects(CodegenConfig::TYPES | CodegenConfig::VARS) {
        Builder::default()
    } else {
        // The kernel's functions, not those of the C run-time library.
        Builder::default().allowlist_file(".*/ddk/.*|.*/newer-nt.h")
    };
    builder
        .use_core()
        // The width of `long` is Windows' also where a Linux host builds this.
        .ctypes_prefix("crate::wdk_sys::ctypes")
        .derive_default(true)
        .generate_cstr(true)
        .detect_include_paths(false)
        .default_enum_style(EnumVariation::ModuleConsts)
        .must_use_type("NTSTATUS")
        .must_use_type("HRESULT")
        .opaque_type("_KGDTENTRY64")
        .opaque_type("_KIDTENTRY64")
        .blocklist_item("ExAllocatePoolWithTag")
        .blocklist_item("ExAllocatePoolWithQuotaTag")
        .blocklist_item("ExAllocatePoolWithTagPriority")
        .blocklist_item("ExAllocatePool")
        // Vector types of the compiler itself.
        .blocklist_file(".*/lib/clang/.*")
        .clang_args(["-target", "x86_64-w64-mingw32", "-fno-builtin", "-w"])
        .clang_args([
            "-D_WIN32_WINNT=0x0A00",
            "-DWINVER=0x0A00",
            "-DNTDDI_VERSION=0x0A000008",
        ])
        .clang_arg(format!("-I{}", include.display()))
        .clang_arg(format!("-I{}", include.join("ddk").display()))
        .clang_arg("-Iheaders")
        .clang_args(resource_directory())
        .with_codegen_config(config)
        .layout_tests(config == CodegenConfig::TYPES)
        .formatter(Formatter::Prettyplease)
        .rust_target(bindgen::RustTarget::stable(91, 0).unwrap_or_default())
        .rust_edition(bindgen::RustEdition::Edition2024)
        .header_contents("wdk.h", header)
        .generate()
        .expect("bindgen reads the DDK headers")
        .to_string()
}

/// Enumerations are `int` for Microsoft's compiler, `unsigned int` for mingw's.
fn signed_enums(text: &str) -> String {
    let mut result = String::with_capacity(text.len());
    for line in text.lines() {
        let trimmed = line.trim_start();
        if trimmed.starts_with("pub type Type = ") {
            result.push_str(&line.replace("c_uint;", "c_int;"));
        } else if let Some((head, value)) = line.split_once(": Type = ")
            && let Ok(value) = value.trim_end_matches(';').parse::<i64>()
            && value > i64::from(i32::MAX)
        {
            write!(result, "{head}: Type = {};", value - (1 << 32)).expect("a String takes all");
        } else {
            result.push_str(line);
        }
        result.push('\n');
    }
    result
}

/// `STATUS_` constants carry a cast that bindgen does not evaluate.
fn status_codes(include: &Path) -> String {
    let text = fs::read_to_string(include.join("ntstatus.h")).expect("ntstatus.h");
    let mut seen = BTreeSet::new();
    let mut result = String::new();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        if words.next() != Some("#define") {
            continue;
        }
        let (Some(name), Some(value)) = (words.next(), words.next()) else {
            continue;
        };
        let Some(digits) = value
            .strip_prefix("((NTSTATUS)0x")
            .and_then(|value| value.strip_suffix(')'))
            .map(|value| value.trim_end_matches(['L', 'l']))
        else {
            continue;
        };
        let Ok(value) = u32::from_str_radix(digits, 16) else {
            continue;
        };
        if name.starts_with("STATUS_") && seen.insert(name.to_owned()) {
            let value = value.cast_signed();
            writeln!(result, "pub const {name}: NTSTATUS = {value};").expect("a String takes all");
        }
    }
    result
}

/// Parameters that mingw-w64's headers type otherwise than Microsoft's:
/// function, what is there, what Microsoft has.
const CORRECTIONS: &[(&str, &str, &str)] = &[(
    "MmMapLockedPagesSpecifyCache",
    "Priority: MM_PAGE_PRIORITY",
    "Priority: ULONG",
)];

fn corrected(mut text: String) -> String {
    for (function, from, to) in CORRECTIONS {
        let start = text
            .find(&format!("pub fn {function}("))
            .unwrap_or_else(|| panic!("no {function}"));
        let length = text[start..].find(';').expect("a declaration ends");
        let declaration = text[start..start + length].replace(from, to);
        text.replace_range(start..start + length, &declaration);
    }
    text
}

/// Gives every extern block the image that exports the function.
fn with_imports(text: &str) -> String {
    let mut result = String::with_capacity(text.len() * 2);
    for block in text.split("unsafe extern \"C\" {").enumerate() {
        let (index, block) = block;
        if index > 0 {
            let name = block
                .split_once("pub fn ")
                .and_then(|(_, rest)| rest.split_once('('))
                .map_or("", |(name, _)| name);
            let image = if HAL.contains(&name) || name.starts_with("Hal") {
                "HAL.dll"
            } else {
                "ntoskrnl.exe"
            };
            write!(
                result,
                "#[cfg_attr(all(windows, feature = \"imports\"), link(name = \"{image}\", kind = \"raw-dylib\", \
                 modifiers = \"+verbatim\"))]\nunsafe extern \"C\" {{"
            )
            .expect("a String takes all");
        }
        result.push_str(block);
    }
    result
}

/// One `unsafe fn` for each KMDF function, for the macro to call by name.
fn wrappers(types: &str, table: &[Function]) -> String {
    let mut result = String::new();
    for Function { name, .. } in table {
        let alias = format!("pub type PFN_{} =", name.to_uppercase());
        let (_, rest) = types
            .split_once(&alias)
            .unwrap_or_else(|| panic!("no {alias}"));
        let (signature, _) = rest.split_once(';').expect("a type ends");
        let (_, rest) = signature.split_once("fn(").expect("a function type");
        let (parameters, tail) = rest.split_once(')').expect("its parameters end");
        let returns = tail
            .split_once("->")
            .map(|(_, r)| r.trim().trim_end_matches(['>', ',', '\n', ' ']).to_owned());
        let parameters: Vec<&str> = parameters
            .split(',')
            .map(str::trim)
            .filter(|p| !p.is_empty())
            .skip(1)
            .collect();
        let names: Vec<&str> = parameters
            .iter()
            .map(|p| p.split(':').next().expect("a name"))
            .collect();
        let must_use = if returns.as_deref() == Some("NTSTATUS") {
            "#[must_use]\n"
        } else {
            ""
        };
        let arrow = returns.map(|r| format!(" -> {r}")).unwrap_or_default();
        writeln!(
            result,
            "{must_use}#[inline]\npub unsafe fn {name}({}){arrow} {{\n    \
             unsafe {{\n        let table = crate::wdk_sys::WdfFunctions;\n        \
             let entry = *table.add(_WDFFUNCENUM::{name}TableIndex as usize);\n        \
             let function: PFN_{} = core::mem::transmute(entry);\n        \
             function.unwrap_unchecked()(crate::wdk_sys::WdfDriverGlobals, {})\n    }}\n}}",
            parameters.join(", "),
            name.to_uppercase(),
            names.join(", "),
        )
        .expect("a String takes all");
    }
    result
}
