//! Compiles `program.cpp` with the kernels of ggml-cpu/qvac and the little of ggml that they need, for each target.
//!
//! Objects are made anew each time, through ccache where it is there.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::Mutex;

use crate::pin;
use crate::targets::{runs, Target, Tools, TARGETS};

pub struct Program {
    pub name: &'static str,
    /// The program, behind what runs it.
    pub command: Vec<OsString>,
}

/// One source for one target: the compiler's arguments are `flags`, then the source.
struct Job {
    compiler: String,
    flags: Vec<OsString>,
    source: PathBuf,
    object: PathBuf,
}

/// As ggml's own build has it: `Release`, and rounding as the source says.
const OPTIONS: &[&str] =
    &["-O3", "-DNDEBUG", "-D_GNU_SOURCE", "-ffp-contract=off", "-ffunction-sections", "-fdata-sections"];

/// Of upstream: graph constructors and what they know of types.
const UPSTREAM: &[&str] = &["ggml.c", "ggml-quants.c", "ggml-threading.cpp"];

pub fn programs() -> Result<Vec<Program>, String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let upstream = match std::env::var_os("QVAC_LLAMA_CPP_DIR") {
        Some(folder) => PathBuf::from(folder),
        None => pin::llama_cpp(),
    }
    .join("ggml");
    let ours = root.join("patches/overlay/ggml");
    let includes: Vec<OsString> = [&ours, &upstream]
        .iter()
        .flat_map(|ggml| [ggml.join("include"), ggml.join("src"), ggml.join("src/ggml-cpu")])
        .chain([root.join("tests/cpu_targets")])
        .flat_map(|folder| [OsString::from("-I"), folder.into()])
        .collect();

    let out = Path::new(env!("CARGO_TARGET_TMPDIR")).join("cpu_targets");
    fs::create_dir_all(&out).map_err(|e| format!("`{}`: {e}", out.display()))?;
    let work = tempfile::tempdir_in(&out).map_err(|e| format!("`{}`: {e}", out.display()))?;

    let mut jobs: Vec<Job> = Vec::new();
    let mut links = Vec::new();
    for target in TARGETS {
        let Some(tools) = target.tools()? else { continue };
        let mut objects = Vec::new();
        // The kernels are made for the target, the rest once for all targets of its architecture.
        let kernels = sources(&ours.join("src/ggml-cpu/qvac"));
        let rest = sources(&ours.join("src/qvac"))
            .into_iter()
            .chain(UPSTREAM.iter().map(|name| upstream.join("src").join(name)))
            .chain([root.join("tests/cpu_targets/program.cpp")]);
        let all = kernels.into_iter().map(|s| (s, target.name, target.flags));
        for (source, place, flags) in all.chain(rest.map(|s| (s, target.arch, &[][..]))) {
            let job = job(&tools, source, &work.path().join(place), flags, &includes)?;
            objects.push(job.object.clone());
            if jobs.iter().all(|other| other.object != job.object) {
                jobs.push(job);
            }
        }
        links.push((target, tools, objects));
    }
    assert!(!links.is_empty(), "no target to test");
    run_all(&jobs)?;
    links
        .into_iter()
        .map(|(target, tools, objects)| link(target, tools, &objects, work.path(), &out))
        .collect()
}

fn sources(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap_or_else(|e| panic!("`{}`: {e}", folder.display()));
    let is_source = |path: &PathBuf| path.extension().is_some_and(|e| e == "c" || e == "cpp");
    entries.map(|entry| entry.expect("folder entry").path()).filter(is_source).collect()
}

fn job(
    tools: &Tools,
    source: PathBuf,
    place: &Path,
    flags: &[&str],
    includes: &[OsString],
) -> Result<Job, String> {
    fs::create_dir_all(place).map_err(|e| format!("`{}`: {e}", place.display()))?;
    let is_c = source.extension().is_some_and(|e| e == "c");
    let (compiler, standard) = if is_c { (&tools.cc, "-std=gnu11") } else { (&tools.cxx, "-std=gnu++17") };
    let name = source.file_name().expect("a name").to_string_lossy();
    let object = place.join(format!("{name}.o"));
    let mut all: Vec<OsString> = OPTIONS.iter().chain(flags).chain([&standard]).map(OsString::from).collect();
    all.extend_from_slice(includes);
    all.extend(["-o".into(), object.clone().into(), "-c".into()]);
    Ok(Job { compiler: compiler.clone(), flags: all, source, object })
}

/// As many at a time as there are cores.
fn run_all(jobs: &[Job]) -> Result<(), String> {
    let ccache = runs("ccache");
    let next = AtomicUsize::new(0);
    let failed = Mutex::new(None);
    let cores = std::thread::available_parallelism().map_or(1, |n| n.get());
    std::thread::scope(|scope| {
        for _ in 0..cores {
            scope.spawn(|| {
                while let Some(job) = jobs.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let mut command = Command::new(if ccache { "ccache" } else { &job.compiler });
                    if ccache {
                        command.arg(&job.compiler);
                    }
                    if let Err(error) = run(command.args(&job.flags).arg(&job.source)) {
                        *failed.lock().expect("no panic") = Some(error);
                        next.store(jobs.len(), Ordering::Relaxed);
                    }
                }
            });
        }
    });
    failed.into_inner().expect("no panic").map_or(Ok(()), Err)
}

/// Static: QEMU has no libraries of the target. Renamed into place, for two runs of the tests may overlap.
fn link(
    target: &'static Target,
    tools: Tools,
    objects: &[PathBuf],
    work: &Path,
    out: &Path,
) -> Result<Program, String> {
    let made = work.join(format!("{}.program", target.name));
    let program = out.join(target.name);
    run(Command::new(&tools.cxx)
        .args(["-static", "-pthread", "-Wl,--gc-sections", "-o"])
        .arg(&made)
        .args(objects)
        .arg("-lm"))?;
    fs::rename(&made, &program).map_err(|e| format!("`{}`: {e}", program.display()))?;
    let command = tools.runner.into_iter().map(OsString::from).chain([program.into()]).collect();
    Ok(Program { name: target.name, command })
}

fn run(command: &mut Command) -> Result<(), String> {
    let output = command.output().map_err(|e| format!("{command:?}: {e}"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("{command:?}: {}\n{}", output.status, String::from_utf8_lossy(&output.stderr)))
}
