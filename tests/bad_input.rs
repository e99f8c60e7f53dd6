//! What the program says to input that it cannot use: the exit code is 2, stderr names the file and the line or the
//! tensor, stdout is empty, and every file that was there before is as it was.

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use assert_cmd::cargo::CommandCargoExt as _;
use common::{nano_model, truncated, AdapterSpec, N_EMBD};

const CHATS: &str = concat!(
    r#"{"messages":[{"role":"user","content":"Is ice cold?"},{"role":"assistant","content":"Yes. It is."}]}"#,
    "\n",
    r#"{"messages":[{"role":"user","content":"Is fire cold?"},{"role":"assistant","content":"No. It is hot."}]}"#,
    "\n",
);

/// ggml's number for a type that has no backward here.
const IQ2_XXS: u32 = 16;

/// A folder with a good model and good data, to which a case adds what is bad.
struct Room {
    dir: tempfile::TempDir,
}

impl Room {
    fn new() -> Self {
        let room = Self { dir: tempfile::tempdir().expect("a folder") };
        nano_model(room.dir.path());
        room.write("chats.jsonl", CHATS);
        room
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn write(&self, name: &str, content: impl AsRef<[u8]>) {
        fs::write(self.path(name), content).expect("writes");
    }

    /// A copy of the model with `from` replaced by `to`, of the same length, at its first place.
    fn patched_model(&self, name: &str, from: &[u8], to: &[u8]) {
        assert_eq!(from.len(), to.len());
        let mut bytes = fs::read(self.path("nano.gguf")).expect("reads");
        let at = find(&bytes, from).expect("what is to be replaced is there");
        bytes[at..at + to.len()].copy_from_slice(to);
        self.write(name, bytes);
    }

    /// A copy of the model in which one tensor is said to have another type.
    fn retyped_model(&self, name: &str, tensor: &str, dtype: u32) {
        let mut bytes = fs::read(self.path("nano.gguf")).expect("reads");
        let mut needle = (tensor.len() as u64).to_le_bytes().to_vec();
        needle.extend(tensor.as_bytes());
        let dims = find(&bytes, &needle).expect("the tensor is there") + needle.len();
        let n_dims = u32::from_le_bytes(bytes[dims..dims + 4].try_into().unwrap()) as usize;
        let at = dims + 4 + 8 * n_dims;
        bytes[at..at + 4].copy_from_slice(&dtype.to_le_bytes());
        self.write(name, bytes);
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::cargo_bin("qvac-ft").expect("the program is built");
        command.args(args).current_dir(self.dir.path()).stdin(Stdio::null()).env_remove("RUST_BACKTRACE");
        command
    }

    fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().expect("the program starts")
    }

    /// A run of one step that works.
    fn train_once(&self, out: &str) {
        let output = self.run(&words(&format!("{TRAIN} -m nano.gguf -d chats.jsonl -o {out} -q")));
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
        assert!(self.path(out).join("adapter.gguf").exists());
    }

    fn files(&self) -> BTreeMap<PathBuf, Vec<u8>> {
        let mut found = BTreeMap::new();
        let mut folders = vec![self.dir.path().to_path_buf()];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).expect("reads") {
                let path = entry.expect("an entry").path();
                match path.is_dir() {
                    true => folders.push(path),
                    false => {
                        let content = fs::read(&path).expect("reads");
                        found.insert(path, content);
                    }
                }
            }
        }
        found
    }
}

fn find(bytes: &[u8], needle: &[u8]) -> Option<usize> {
    bytes.windows(needle.len()).position(|w| w == needle)
}

fn words(line: &str) -> Vec<&str> {
    line.split_whitespace().collect()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).expect("stderr is UTF-8")
}

/// A training run of one short step; what a case adds says on what.
const TRAIN: &str = "train --device cpu --threads 1 --chat-template chatml --seq-len 128 --steps 1";
const EVAL: &str = "eval --device cpu --threads 1 --chat-template chatml --seq-len 128";

type Prepare = Box<dyn Fn(&Room)>;

struct Case {
    name: &'static str,
    prepare: Prepare,
    args: String,
    /// What stderr must say.
    says: &'static [&'static str],
}

fn case(
    name: &'static str,
    prepare: impl Fn(&Room) + 'static,
    args: impl Into<String>,
    says: &'static [&'static str],
) -> Case {
    Case { name, prepare: Box::new(prepare), args: args.into(), says }
}

/// Training `bad.gguf` on the good data.
fn model(name: &'static str, prepare: impl Fn(&Room) + 'static, says: &'static [&'static str]) -> Case {
    case(name, prepare, format!("{TRAIN} -m bad.gguf -d chats.jsonl -o out"), says)
}

/// Training the good model on `bad.jsonl`.
fn data(name: &'static str, content: &'static str, says: &'static [&'static str]) -> Case {
    let args = format!("{TRAIN} -m nano.gguf -d bad.jsonl -o out");
    case(name, move |room| room.write("bad.jsonl", content), args, says)
}

/// Training the good model on the good data, with flags that do not fit them.
fn flags(name: &'static str, rest: &str, says: &'static [&'static str]) -> Case {
    let args = format!("train --threads 1 --chat-template chatml -m nano.gguf -d chats.jsonl -o out {rest}");
    case(name, |_| {}, args, says)
}

fn models() -> Vec<Case> {
    vec![
        case(
            "no such model",
            |_| {},
            format!("{TRAIN} -m none.gguf -d chats.jsonl -o out"),
            &["`none.gguf`", "No such file"],
        ),
        model("not a GGUF", |r| r.write("bad.gguf", "a poem"), &["`bad.gguf` is not a GGUF file", "`a po`"]),
        model("empty model", |r| r.write("bad.gguf", ""), &["`bad.gguf` is not a GGUF file"]),
        model(
            "header cut off",
            |r| fs::rename(truncated(&r.path("nano.gguf"), 0.001), r.path("bad.gguf")).unwrap(),
            &["`bad.gguf`", "incomplete or damaged"],
        ),
        model(
            "tensors cut off",
            |r| fs::rename(truncated(&r.path("nano.gguf"), 0.6), r.path("bad.gguf")).unwrap(),
            &["`bad.gguf` is truncated: tensor `", "incomplete or damaged"],
        ),
        model(
            "wrong architecture",
            |r| r.patched_model("bad.gguf", b"\x06\0\0\0\0\0\0\0bitnet", b"\x06\0\0\0\0\0\0\0falcon"),
            &["`bad.gguf`: architecture `falcon` cannot be trained (supported: ", "bitnet"],
        ),
        model(
            "type that cannot be trained",
            |r| r.retyped_model("bad.gguf", "blk.1.ffn_up.weight", IQ2_XXS),
            &["`bad.gguf`: tensor `blk."],
        ),
        model(
            "type that nobody knows",
            |r| r.retyped_model("bad.gguf", "blk.0.attn_q.weight", 999),
            &["`bad.gguf`: tensor `blk.0.attn_q.weight` has type 999"],
        ),
        model(
            "missing metadata",
            |r| r.patched_model("bad.gguf", b"bitnet.block_count", b"bitnet.black_count"),
            &["`bad.gguf`: no key `bitnet.block_count`"],
        ),
        model(
            "missing tensor",
            |r| r.patched_model("bad.gguf", b"blk.1.ffn_down.weight", b"blk.1.ffn_dawn.weight"),
            &["`bad.gguf`: ", "`blk.1.ffn_d", ".weight`"],
        ),
    ]
}

fn datasets() -> Vec<Case> {
    vec![
        case("no such data", |_| {}, format!("{TRAIN} -m nano.gguf -d none.jsonl -o out"), &["`none.jsonl`", "No such file"]),
        data("empty data", "", &["`bad.jsonl` holds no records"]),
        data("blank lines", "\n\n\n", &["`bad.jsonl` holds no records"]),
        data("malformed JSON line", "{\"prompt\": \"a\", \"completion\": \"b\"}\n{\"prompt\": \n", &["bad.jsonl:2: malformed JSON at column"]),
        data("no object", "{\"prompt\": \"a\", \"completion\": \"b\"}\n[1]\n", &["bad.jsonl:2: expected a JSON object"]),
        data("unknown shape", "{\"question\": \"a\"}\n", &["bad.jsonl:1: no known shape of record", "`question`", "known are: `messages`"]),
        data("wrong type", "{\"prompt\": \"a\", \"completion\": 7}\n", &["bad.jsonl:1: field `completion`", "found "]),
        data(
            "no assistant turn",
            "{\"prompt\": \"a\", \"completion\": \"b\"}\n\n{\"messages\": [{\"role\": \"user\", \"content\": \"a\"}]}\n",
            &["bad.jsonl:3: the conversation has no `assistant` message", "`--loss-on all`"],
        ),
        case(
            "not text",
            |r| r.write("bad.jsonl", b"{\"prompt\": \"\xff\", \"completion\": \"b\"}\n"),
            format!("{TRAIN} -m nano.gguf -d bad.jsonl -o out"),
            &["bad.jsonl:1: not UTF-8 text"],
        ),
        case(
            "bad evaluation data",
            |r| r.write("bad.jsonl", "{\n"),
            format!("{TRAIN} -m nano.gguf -d chats.jsonl --eval-data bad.jsonl -o out"),
            &["bad.jsonl:1: malformed JSON"],
        ),
        case(
            "sample longer than the context",
            |r| r.write("long.txt", "many words ".repeat(300)),
            "generate --device cpu --threads 1 --raw -m nano.gguf --ctx-size 256 -f long.txt",
            &["the context of 256 tokens is full", "`--ctx-size`"],
        ),
    ]
}

fn settings() -> Vec<Case> {
    vec![
        flags(
            "row longer than the context",
            "--device cpu --seq-len 4096",
            &["`--seq-len 4096` is longer than the context of `nano.gguf`, 2048"],
        ),
        flags(
            "batch that is no whole number of rows",
            "--device cpu --seq-len 128 --batch-tokens 100",
            &["`--batch-tokens 100` is no multiple of `--seq-len 128`", "hint: pass `--batch-tokens 128`"],
        ),
        flags(
            "rank larger than the layer",
            "--device cpu --rank 300",
            &["rank 300", "`blk.0.attn_q.weight`", "`--rank` of at most 256"],
        ),
        flags(
            "unknown target",
            "--device cpu --targets attn_q,elbow",
            &["no layer is called `elbow`", "attn_q"],
        ),
        flags("learning rate of zero", "--device cpu --lr 0", &["`lr` is 0"]),
        flags("no such device", "--device vulkan99", &["no device named `vulkan99`", "`qvac-ft devices`"]),
        case(
            "no such template",
            |_| {},
            "train --device cpu -m nano.gguf -d chats.jsonl -o out --chat-template nosuch",
            &["`nosuch`", "chatml"],
        ),
        flags("nothing to go on with", "--device cpu --resume", &["`out` has no checkpoint"]),
        case(
            "a file in place of the folder",
            |r| r.write("out", "precious"),
            format!("{TRAIN} -m nano.gguf -d chats.jsonl -o out"),
            &["cannot create `out`", "File exists"],
        ),
        case(
            "a folder below a file",
            |r| r.write("out", "precious"),
            format!("{TRAIN} -m nano.gguf -d chats.jsonl -o out/run"),
            &["`out/run`", "Not a directory"],
        ),
        case(
            "a folder that holds a run",
            |r| r.train_once("out"),
            format!("{TRAIN} -m nano.gguf -d chats.jsonl -o out"),
            &["`out` already holds a run", "`--resume`"],
        ),
        case(
            "checkpoint of another run",
            |r| r.train_once("out"),
            format!("{TRAIN} -m nano.gguf -d chats.jsonl -o out --resume --seed 7"),
            &["`out` belongs to another run: its `seed` is 42, asked for is 7"],
        ),
        case(
            "checkpoint of a run on other data",
            |r| {
                r.train_once("out");
                r.write("other.jsonl", CHATS.lines().next().unwrap());
            },
            format!("{TRAIN} -m nano.gguf -d other.jsonl -o out --resume"),
            &["`out` belongs to another run: its `data_hash` is"],
        ),
        case(
            "damaged checkpoint",
            |r| {
                r.train_once("out");
                r.write("out/checkpoints/step-1/state.safetensors", "half of i");
            },
            format!("{TRAIN} -m nano.gguf -d chats.jsonl -o out --resume"),
            &["state.safetensors` is damaged"],
        ),
    ]
}

fn adapters() -> Vec<Case> {
    let mut cases = Vec::new();
    for (name, command) in [
        ("train", format!("{TRAIN} -m nano.gguf -d chats.jsonl -o out --adapter bad.gguf")),
        ("eval", format!("{EVAL} -m nano.gguf -d chats.jsonl --adapter bad.gguf")),
        ("generate", "generate --device cpu --threads 1 -m nano.gguf --raw -p x --adapter bad.gguf".into()),
    ] {
        let spoilt = |spec: fn() -> AdapterSpec| move |r: &Room| spec().write(&r.path("bad.gguf"));
        cases.push(case(
            name,
            spoilt(|| AdapterSpec { architecture: "llama", ..AdapterSpec::default() }),
            command.clone(),
            &["`bad.gguf`", "adapter of a", "`llama`", "`bitnet`", "hint: pass the model"],
        ));
        cases.push(case(
            name,
            spoilt(|| AdapterSpec { a: [N_EMBD * 2, 4], ..AdapterSpec::default() }),
            command.clone(),
            &["`bad.gguf`", "blk.0.attn_q.weight", "512", "256"],
        ));
        cases.push(case(
            name,
            spoilt(|| AdapterSpec { tensor: "blk.9.attn_q.weight", ..AdapterSpec::default() }),
            command.clone(),
            &["`bad.gguf`", "blk.9.attn_q.weight"],
        ));
        cases.push(case(
            name,
            spoilt(|| AdapterSpec { b: None, ..AdapterSpec::default() }),
            command.clone(),
            &["`bad.gguf`", "blk.0.attn_q.weight", "lora_b"],
        ));
        cases.push(case(
            name,
            |r| {
                fs::copy(r.path("nano.gguf"), r.path("bad.gguf")).unwrap();
            },
            command,
            &["`bad.gguf` is not a", "adapter", "general.type"],
        ));
    }
    cases
}

#[test]
fn every_bad_input_is_named_and_nothing_is_written_over() {
    let cases: Vec<Case> = [models(), datasets(), settings(), adapters()].into_iter().flatten().collect();
    let mut wrong = Vec::new();
    for Case { name, prepare, args, says } in &cases {
        let room = Room::new();
        prepare(&room);
        let before = room.files();
        let output = room.run(&words(args));
        let said = stderr(&output);
        let mut faults = Vec::new();
        if output.status.code() != Some(2) {
            faults.push(format!("exit code {:?}", output.status.code()));
        }
        if !output.stdout.is_empty() {
            faults.push("something on stdout".into());
        }
        if !said.starts_with("error: ") {
            faults.push("stderr does not begin with the error".into());
        }
        faults.extend(says.iter().filter(|w| !said.contains(*w)).map(|w| format!("`{w}` is not said")));
        let after = room.files();
        for (path, content) in &before {
            if after.get(path) != Some(content) {
                faults.push(format!("`{}` was changed", path.display()));
            }
        }
        if after.keys().any(|path| path.ends_with("adapter.gguf") && !before.contains_key(path)) {
            faults.push("an adapter was written".into());
        }
        if !faults.is_empty() {
            wrong.push(format!("{name} ({args}): {}\n{said}", faults.join(", ")));
        }
    }
    assert!(wrong.is_empty(), "{} of {} cases:\n{}", wrong.len(), cases.len(), wrong.join("\n"));
}

/// The memory that a shell leaves the program is real, so the failures are the allocator's own.
#[cfg(target_os = "linux")]
#[test]
fn out_of_memory_names_the_device_and_what_did_not_fit() {
    // Address space, in KiB: enough to start with, and for the smaller of the two.
    const LIMIT: &str = "ulimit -v 3000000; exec \"$0\" \"$@\"";
    let room = Room::new();
    for (rows, what) in
        [("60000", "no room for the hidden states, "), ("64", "no room for a graph's values, ")]
    {
        let tokens = (2048 * rows.parse::<usize>().unwrap()).to_string();
        let args = format!(
            "train --device cpu --threads 1 --chat-template chatml --seq-len 2048 --micro-batch {rows} \
             --batch-tokens {tokens} -m nano.gguf -d chats.jsonl -o out-{rows}"
        );
        let program = room.command(&[]).get_program().to_owned();
        let output = Command::new("sh")
            .args(["-c", LIMIT])
            .arg(program)
            .args(words(&args))
            .current_dir(room.dir.path())
            .output()
            .expect("`sh` starts");
        let said = stderr(&output);
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(said.contains("device `cpu` is out of memory: ") && said.contains(what), "{said}");
        assert!(said.contains("`--micro-batch`"), "{said}");
    }
}

/// In a mount namespace of its own, on a file system of a few hundred KiB.
#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_loses_nothing() {
    let room = Room::new();
    let disk = room.path("disk");
    fs::create_dir(&disk).unwrap();
    // The checkpoint of the first step fits neither: 82k parameters of three numbers each.
    const SCRIPT: &str = "mount -t tmpfs -o size=600k tmpfs disk && echo precious >disk/note || exit 99
        \"$0\" \"$@\"; code=$?; cat disk/note; find disk -type f; exit $code";
    let program = room.command(&[]).get_program().to_owned();
    let args = format!("{TRAIN} -m nano.gguf -d chats.jsonl -o disk/run");
    let output = Command::new("unshare")
        .args(["--user", "--map-root-user", "--mount", "sh", "-c", SCRIPT])
        .arg(program)
        .args(words(&args))
        .current_dir(room.dir.path())
        .output()
        .expect("`unshare` of util-linux starts");
    let (said, files) = (stderr(&output), String::from_utf8(output.stdout.clone()).unwrap());
    assert_eq!(output.status.code(), Some(2), "99: this machine cannot mount a tmpfs in a namespace\n{said}");
    assert!(said.contains("disk/run/checkpoints/") && said.contains("No space left"), "{said}");
    assert!(said.contains("hint: free some space"), "{said}");
    assert!(files.starts_with("precious\n"), "{files}");
    assert!(!files.contains("adapter.gguf") && !files.contains("partial"), "{files}");
}
