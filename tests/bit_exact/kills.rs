//! `train --exact`, killed at a random step and gone on with elsewhere: the file of a straight run.

use std::fs;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant, SystemTime};

use super::common::device::vulkan;
use super::common::nano_model;
use super::qvac;

const STEPS: usize = 12;

fn lines(path: &Path) -> usize {
    fs::read_to_string(path).map_or(0, |text| text.lines().count())
}

fn chats(dir: &Path) {
    let chat = |i: usize| {
        format!(
            r#"{{"messages":[{{"role":"user","content":"Is {i} even?"}},{{"role":"assistant","content":"{}. It is."}}]}}"#,
            ["Yes", "No"][i % 2]
        )
    };
    fs::write(dir.join("chats.jsonl"), (0..20).map(chat).collect::<Vec<_>>().join("\n")).unwrap();
}

fn line(out: &str, rest: &str) -> String {
    format!(
        "train --exact -m nano.gguf -d chats.jsonl --chat-template chatml --seq-len 64 --batch-tokens 128 --lr 1e-3 \
         --steps {STEPS} --save-every 2 --json -o {out} {rest}"
    )
}

fn done(dir: &Path, out: &str, rest: &str) {
    let output = qvac(dir, &line(out, rest)).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
}

fn kill(child: &mut Child) {
    child.kill().expect("it still runs");
    assert!(!child.wait().unwrap().success());
}

#[test]
fn a_killed_run_ends_as_a_straight_one_on_another_device() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    nano_model(dir);
    chats(dir);
    done(dir, "straight", "--device cpu --threads 1 --micro-batch 1");

    let seed = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().subsec_nanos() as usize;
    // Later than the first checkpoint, which is written behind the record of step 2.
    let after = 3 + seed % (STEPS - 7);
    eprintln!("killed after step {after}");
    let mut child = qvac(dir, &line("run", "--device cpu --threads 2 --micro-batch 2"))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let start = Instant::now();
    while lines(&dir.join("run/metrics.jsonl")) < after {
        assert!(child.try_wait().unwrap().is_none(), "it ended before step {after}");
        assert!(start.elapsed() < Duration::from_secs(120), "too slow");
        std::thread::sleep(Duration::from_millis(1));
    }
    kill(&mut child);
    let device = vulkan().map_or("cpu".into(), |device| device.name().to_owned());
    done(dir, "run", &format!("--resume --device {device} --micro-batch 2"));

    let adapter = |run: &str| fs::read(dir.join(run).join("adapter.gguf")).unwrap();
    assert!(adapter("run") == adapter("straight"), "the two adapters differ");
    let losses = |run: &str| -> Vec<String> {
        let text = fs::read_to_string(dir.join(run).join("metrics.jsonl")).unwrap();
        let step = |line: &str| serde_json::from_str::<serde_json::Value>(line).unwrap();
        text.lines().map(|l| format!("{} {}", step(l)["loss"], step(l)["grad_norm"])).collect()
    };
    assert_eq!(losses("run"), losses("straight"));
}
