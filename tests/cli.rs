//! The program from outside: exit codes, what goes to stdout and what to stderr, and the shape of its JSON.

mod common;

use std::path::Path;
use std::process::{Command, Output, Stdio};

use assert_cmd::cargo::CommandCargoExt as _;
use common::{nano_model, truncated, AdapterSpec};
use serde_json::Value;

const COMMANDS: [&str; 17] = [
    "train",
    "eval",
    "generate",
    "chat",
    "data",
    "inspect",
    "export",
    "convert",
    "quantize",
    "plan",
    "bench",
    "report",
    "verify",
    "synth",
    "devices",
    "completions",
    "man",
];

fn qvac(args: &[&str]) -> Command {
    let mut command = Command::cargo_bin("qvac-ft").expect("the program is built");
    command.args(args).stdin(Stdio::null()).env_remove("RUST_BACKTRACE").env("COLUMNS", "100");
    command
}

fn run(args: &[&str]) -> Output {
    qvac(args).output().expect("the program starts")
}

fn run_with_stdin(args: &[&str], input: &str) -> Output {
    use std::io::Write as _;
    let mut child = qvac(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program starts");
    child.stdin.take().expect("piped").write_all(input.as_bytes()).expect("takes its input");
    child.wait_with_output().expect("ends")
}

fn code(output: &Output) -> i32 {
    output.status.code().expect("no signal ended it")
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).expect("stdout is UTF-8")
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).expect("stderr is UTF-8")
}

/// One JSON object on stdout and nothing else.
fn json(output: &Output) -> Value {
    assert_eq!(code(output), 0, "{}", stderr(output));
    let text = stdout(output);
    let value: Value = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}"));
    assert!(value.is_object(), "{text}");
    value
}

fn path(path: &Path) -> &str {
    path.to_str().expect("temporary folders have UTF-8 names")
}

/// Flags that keep an inference small.
fn small<'a>(command: &'a str, model: &'a Path) -> Vec<&'a str> {
    vec![command, "-m", path(model), "--device", "cpu", "--threads", "1", "--ctx-size", "256"]
}

#[test]
fn every_command_has_help() {
    let help = stdout(&run(&["--help"]));
    for command in COMMANDS {
        assert!(help.contains(&format!("  {command} ")), "`{command}` is not in:\n{help}");
        let output = run(&[command, "--help"]);
        assert_eq!(code(&output), 0);
        assert!(stdout(&output).contains("Usage: qvac-ft"), "{command}");
        assert!(stdout(&output).contains("--json"), "{command}");
        assert!(output.stderr.is_empty(), "{command}");
    }
    let version = run(&["--version"]);
    assert_eq!((code(&version), stdout(&version)), (0, format!("qvac-ft {}\n", env!("CARGO_PKG_VERSION"))));
}

#[test]
fn bad_flags_exit_with_2_and_touch_nothing() {
    for (args, word) in [
        (&["no-such-command"][..], "no-such-command"),
        (&[], "Usage: qvac-ft"),
        (&["devices", "--no-such-flag"], "--no-such-flag"),
        (&["devices", "-q", "-v"], "cannot be used with"),
        (&["generate", "-p", "x"], "--model"),
        (&["generate", "-m", "x", "-p", "x", "--ctx-size", "0"], "--ctx-size"),
        (&["generate", "-m", "x", "-p", "x", "-f", "y"], "cannot be used with"),
        (&["generate", "-m", "x", "-p", "x", "--raw", "--system", "y"], "cannot be used with"),
        (&["generate", "-m", "x", "-p", "x", "--adapter", "a:inf"], "finite"),
        (&["completions", "tcsh"], "tcsh"),
    ] {
        let output = run(args);
        assert_eq!(code(&output), 2, "{args:?}");
        assert!(output.stdout.is_empty(), "{args:?}");
        assert!(stderr(&output).contains(word), "{args:?}: {}", stderr(&output));
    }
}

#[test]
fn an_error_tells_what_why_and_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let model = nano_model(dir.path());
    let model = path(&model);
    let output = run(&["generate", "-m", model, "-p", "x", "--device", "vulkan99"]);
    assert_eq!(code(&output), 2);
    assert!(output.stdout.is_empty());
    let text = stderr(&output);
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines[0], format!("error: cannot load `{model}`"));
    assert!(lines[1].starts_with("  caused by: no device named `vulkan99` (found: "), "{text}");
    assert_eq!(&lines[2..], ["", "hint: `qvac-ft devices` lists what this machine has"]);

    let output = run(&["generate", "-m", model, "-p", "x", "--temp", "-1"]);
    assert_eq!(code(&output), 2, "{}", stderr(&output));
}

#[test]
fn bad_files_exit_with_2_and_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let model = nano_model(dir.path());
    let cut = truncated(&model, 0.5);
    let text = dir.path().join("text.gguf");
    std::fs::write(&text, "no model").unwrap();
    let missing = dir.path().join("missing.gguf");
    let foreign = dir.path().join("foreign.gguf");
    AdapterSpec { architecture: "llama", ..AdapterSpec::default() }.write(&foreign);
    for (file, reason) in
        [(&cut, "truncated"), (&text, "not a GGUF file"), (&missing, "No such file"), (&foreign, "")]
    {
        let output = run(&["generate", "-m", path(file), "-p", "x", "--device", "cpu"]);
        let said = stderr(&output);
        assert_eq!(code(&output), 2, "{said}");
        assert!(said.starts_with(&format!("error: cannot load `{}`\n  caused by: ", path(file))), "{said}");
        assert!(said.contains(reason), "{said}");
        assert!(output.stdout.is_empty());
    }
    let mut args = small("generate", &model);
    args.extend(["-p", "x", "--adapter", path(&foreign)]);
    let output = run(&args);
    assert_eq!(code(&output), 2);
    assert_eq!(
        stderr(&output),
        format!(
            "error: cannot apply adapter `{foreign}`\n  \
               caused by: `{foreign}` is an adapter of another model: its architecture is `llama`, that of `{model}` is \
             `bitnet`\n\n\
             hint: pass the model that the adapter was trained on with `--model`\n",
            foreign = path(&foreign),
            model = path(&model),
        )
    );
}

#[test]
fn devices_has_a_cpu_and_a_default() {
    let report = json(&run(&["devices", "--json"]));
    let devices = report["devices"].as_array().unwrap();
    let names: Vec<&str> = devices.iter().map(|d| d["name"].as_str().unwrap()).collect();
    assert!(names.contains(&"cpu"), "{names:?}");
    assert!(names.contains(&report["default"].as_str().unwrap()));
    for device in devices {
        for key in ["description", "kind", "memory_total", "memory_free", "backend", "features"] {
            assert!(!device[key].is_null(), "`{key}` of {device}");
        }
    }
    let output = run(&["devices"]);
    assert_eq!(stdout(&output).lines().filter(|line| line.starts_with("* ")).count(), 1, "one default");
    assert_eq!(stderr(&output), "* is taken when no `--device` is given\n");
    assert!(run(&["devices", "-q"]).stderr.is_empty());
}

#[test]
fn generate_reports_what_it_did() {
    let dir = tempfile::tempdir().unwrap();
    let model = nano_model(dir.path());
    let mut args = small("generate", &model);
    args.extend(["--raw", "-p", "hello there", "-n", "5", "--json"]);
    let report = json(&run(&args));
    let tokens = report["tokens"].as_array().unwrap();
    assert_eq!(report["n_generated"].as_u64().unwrap(), tokens.len() as u64);
    assert!(tokens.len() <= 5);
    assert!(report["n_prompt"].as_u64().unwrap() > 0);
    assert!(report["prompt_tokens_per_second"].as_f64().unwrap() > 0.0);
    assert!(report["tokens_per_second"].is_number());
    assert!(["max_tokens", "end_of_generation"].contains(&report["stop"].as_str().unwrap()));
    assert_eq!(report["device"], "cpu");
    assert!(report["seed"].is_null(), "the most probable token needs no seed");

    // The same without JSON, the prompt from a file and from stdin: the text on stdout, the summary on stderr.
    let prompt = dir.path().join("prompt.txt");
    std::fs::write(&prompt, "hello there\n").unwrap();
    let mut args = small("generate", &model);
    args.extend(["--raw", "-n", "5"]);
    let from_stdin = run_with_stdin(&args, "hello there\n");
    args.extend(["-f", path(&prompt)]);
    let from_file = run(&args);
    let expected = format!("{}\n", report["text"].as_str().unwrap());
    for output in [&from_stdin, &from_file] {
        assert_eq!(code(output), 0, "{}", stderr(output));
        assert_eq!(stdout(output), expected);
        assert!(stderr(output).contains("prompt tokens at"), "{}", stderr(output));
        assert_eq!(stderr(output).lines().count(), 1, "libllama's log stays out of it: {}", stderr(output));
    }
    args.push("-q");
    assert!(run(&args).stderr.is_empty());
    args.pop();
    args.push("-v");
    assert!(stderr(&run(&args)).contains("llama_"), "-v shows the log");

    let mut args = small("generate", &model);
    args.extend(["--raw", "-p", "hello there", "-n", "12", "--temp", "1.5", "--json"]);
    args.extend(["--seed", "3"]);
    let (first, second) = (json(&run(&args)), json(&run(&args)));
    assert_eq!(first["tokens"], second["tokens"], "a seed repeats");
    assert_eq!(first["seed"], 3);
}

#[test]
fn an_adapter_can_be_given_with_a_scale() {
    let dir = tempfile::tempdir().unwrap();
    let model = nano_model(dir.path());
    let adapter = dir.path().join("adapter.gguf");
    AdapterSpec::default().write(&adapter);
    let tokens = |adapter: Option<&str>| {
        let mut args = small("generate", &model);
        args.extend(["--raw", "-p", "hello there", "-n", "12", "--json"]);
        args.extend(adapter.into_iter().flat_map(|adapter| ["--adapter", adapter]));
        json(&run(&args))["tokens"].clone()
    };
    let bare = tokens(None);
    assert_ne!(tokens(Some(path(&adapter))), bare, "it changes the answer");
    assert_eq!(tokens(Some(&format!("{}:0", path(&adapter)))), bare, "with scale 0 it does not");
}

#[test]
fn chat_works_line_by_line() {
    let dir = tempfile::tempdir().unwrap();
    let model = nano_model(dir.path());
    let mut args = small("chat", &model);
    args.extend(["--chat-template", "chatml", "--temp", "0", "-n", "3", "--json"]);
    let input = "hi\n/reset\n\n/system be brief\nyou\nthere\n/nonsense\n/quit\nnot read\n";
    let output = run_with_stdin(&args, input);
    let report = json(&output);
    let roles: Vec<&str> =
        report["messages"].as_array().unwrap().iter().map(|m| m["role"].as_str().unwrap()).collect();
    assert_eq!(roles, ["system", "user", "assistant", "user", "assistant"]);
    assert_eq!(report["messages"][0]["content"], "be brief");
    assert!(stderr(&output).contains("no command `/nonsense`"), "{}", stderr(&output));

    // What the cache keeps from the first turn does not change the second.
    let mut args = small("generate", &model);
    let text = |i: usize| report["messages"][i]["content"].as_str().unwrap();
    let conversation = format!(
        "<|im_start|>system\nbe brief<|im_end|>\n<|im_start|>user\nyou<|im_end|>\n<|im_start|>assistant\n\
         {}<|im_end|>\n<|im_start|>user\nthere<|im_end|>\n<|im_start|>assistant\n",
        text(2)
    );
    args.extend(["--raw", "-n", "3", "-q", "-p", &conversation]);
    assert_eq!(stdout(&run(&args)).trim_end_matches('\n'), text(4).trim_end_matches('\n'));
}

#[test]
fn a_conversation_that_does_not_fit_is_no_end() {
    let dir = tempfile::tempdir().unwrap();
    let model = nano_model(dir.path());
    let mut args = small("chat", &model);
    args.extend(["--chat-template", "chatml", "--temp", "0", "-n", "3"]);
    let output = run_with_stdin(&args, &format!("{}\nhi\n", "many words ".repeat(400)));
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    assert!(stderr(&output).contains("warning: the context of 256 tokens is full"), "{}", stderr(&output));
    assert!(stdout(&output).ends_with('\n'), "the next question was answered");
}

#[test]
fn completions_and_manual_pages_name_every_command() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = stdout(&run(&["completions", shell]));
        for command in COMMANDS {
            assert!(script.contains(command), "{shell}: {command}");
        }
    }
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("man/man1");
    let report = json(&run(&["man", path(&folder), "--json"]));
    for command in COMMANDS {
        let page = folder.join(format!("qvac-ft-{command}.1"));
        let text = std::fs::read_to_string(&page).unwrap_or_else(|e| panic!("`{}`: {e}", page.display()));
        assert!(text.contains(".SH OPTIONS"), "{command}");
    }
    assert!(report["files"].as_array().unwrap().len() > COMMANDS.len());
    assert!(stdout(&run(&["man"])).contains(".SH NAME"));
}

#[test]
fn a_reader_that_leaves_is_no_failure() {
    let mut child = qvac(&["completions", "bash"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program starts");
    drop(child.stdout.take());
    let output = child.wait_with_output().expect("ends");
    assert_eq!(code(&output), 0);
    assert!(stderr(&output).is_empty(), "{}", stderr(&output));
}

#[test]
fn colour_is_only_there_on_request() {
    let plain = run(&["generate", "-m", "missing.gguf", "-p", "x"]);
    assert!(stderr(&plain).starts_with("error: "), "{}", stderr(&plain));
    let coloured = run(&["generate", "-m", "missing.gguf", "-p", "x", "--color", "always"]);
    assert!(stderr(&coloured).starts_with("\u{1b}["), "{}", stderr(&coloured));
    assert_eq!(console::strip_ansi_codes(&stderr(&coloured)), stderr(&plain));
}

/// On a terminal, which `script` makes: rustyline once took the signal for itself.
#[cfg(target_os = "linux")]
#[test]
fn ctrl_c_stops_an_answer_and_not_the_chat() {
    use std::io::{Read as _, Write as _};
    use std::sync::{Arc, Mutex};
    use std::time::{Duration, Instant};

    let dir = tempfile::tempdir().unwrap();
    let model = nano_model(dir.path());
    let program = qvac(&[]);
    let program = path(Path::new(program.get_program())).to_owned();
    // A system prompt that takes seconds to compute, so that there is something to stop. `exec`, because a shell that
    // stays between (dash does, bash does not) takes the signal too, and its exit code is then its own.
    let command = format!(
        "exec {program} chat -v -m {} --device cpu --threads 1 --ctx-size 65536 --chat-template chatml --system '{}'",
        path(&model),
        "many words ".repeat(5000)
    );
    let mut child = Command::new("script")
        .args(["-qec", &command, "/dev/null"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("`script` of util-linux is there");
    let mut keys = child.stdin.take().expect("piped");
    let mut screen = child.stdout.take().expect("piped");
    let shown = Arc::new(Mutex::new(Vec::new()));
    let reader = std::thread::spawn({
        let shown = Arc::clone(&shown);
        move || {
            let mut buffer = [0; 4096];
            while let Ok(n @ 1..) = screen.read(&mut buffer) {
                shown.lock().unwrap().extend_from_slice(&buffer[..n]);
            }
        }
    });
    let wait_for = |what: &str| {
        let start = Instant::now();
        loop {
            let text = String::from_utf8_lossy(&shown.lock().unwrap()).into_owned();
            if text.contains(what) {
                break;
            }
            assert!(start.elapsed() < Duration::from_secs(60), "no `{what}` in:\n{text}");
            std::thread::sleep(Duration::from_millis(20));
        }
    };
    let mut press =
        |text: &str| keys.write_all(text.as_bytes()).and_then(|()| keys.flush()).expect("takes keys");
    wait_for("> ");
    press("hello\r");
    std::thread::sleep(Duration::from_millis(1000));
    press("\x03");
    wait_for("; interrupted");
    press("/reset\r");
    wait_for("the conversation is forgotten");
    press("/quit\r");
    assert_eq!(child.wait().expect("ends").code(), Some(0));
    reader.join().expect("reads to the end");
}
