//! `report` and `bench compare` from outside: pages, pictures, the gate, and the schema that all results keep to.

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use common::nano_model;
use common::program::{json as json_of, run as qvac, stderr};
use serde_json::{json, Value};

fn ok(output: Output) -> Output {
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    output
}

fn object(output: Output) -> Value {
    json_of(&output)
}

/// A folder with a run of forty steps, its results, and those of `bench`.
struct Room {
    dir: tempfile::TempDir,
    train: Value,
}

const TRAIN: &str =
    "train -m nano.gguf -d chats.jsonl --device cpu --threads 1 --chat-template chatml --seq-len 64 \
                     --batch-tokens 64 --rank 2 --eval-data chats.jsonl --json";

fn room(steps: usize) -> Room {
    let dir = tempfile::tempdir().unwrap();
    nano_model(dir.path());
    let chat = |i: usize| {
        let (label, word) = [("yes", "Yes"), ("no", "No")][i % 2];
        format!(
            r#"{{"messages":[{{"role":"user","content":"Is {i} even?"}},{{"role":"assistant","content":"{word}."}}],"label":"{label}"}}"#
        )
    };
    fs::write(dir.path().join("chats.jsonl"), (0..6).map(chat).collect::<Vec<_>>().join("\n")).unwrap();
    let line = format!("{TRAIN} --steps {steps} --eval-every {} --tensorboard -o run", steps / 2);
    let train = object(qvac(dir.path(), &line));
    Room { dir, train }
}

const BENCH_TRAIN: &str =
    "bench train --shape nano --device cpu --threads 1 --seq-len 32 --batch-tokens 64 --steps 3 \
                           --warmup 1 --parts 1 --json";
const BENCH_INFER: &str = "bench infer --shape nano --device cpu --threads 1 -p 16 -n 8 --reps 3 --json";

/// Runs `line` and keeps its result in `file`.
fn keep(dir: &Path, line: &str, file: &str) -> Value {
    let output = ok(qvac(dir, line));
    fs::write(dir.join(file), &output.stdout).unwrap();
    serde_json::from_slice(&output.stdout).unwrap()
}

mod schema {
    use super::*;

    /// Holds a value to one of the schema's definitions.
    #[track_caller]
    fn holds(definition: &str, value: &Value) {
        let errors = errors(definition, value);
        assert!(errors.is_empty(), "`{definition}`: {}\n{value}", errors.join("\n"));
    }

    fn errors(definition: &str, value: &Value) -> Vec<String> {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/schema/results.json");
        let mut schema: Value = serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap();
        let all = schema.as_object_mut().unwrap();
        all.remove("anyOf");
        assert!(all["$defs"].get(definition).is_some(), "`{definition}`");
        all.insert("$ref".into(), format!("#/$defs/{definition}").into());
        let validator = jsonschema::validator_for(&schema).expect("a schema");
        validator.iter_errors(value).map(|e| format!("{}: {e}", e.instance_path())).collect()
    }

    #[test]
    fn every_result_keeps_to_it() {
        let room = room(2);
        let dir = room.dir.path();
        holds("train", &room.train);
        assert_eq!(room.train["seed"], 42);
        let eval =
            "eval -m nano.gguf -d chats.jsonl --device cpu --threads 1 --chat-template chatml --seq-len 64";
        holds("eval", &object(qvac(dir, &format!("{eval} --json"))));
        holds("eval", &object(qvac(dir, &format!("{eval} --adapter run/adapter.gguf --json"))));
        let metrics = fs::read_to_string(dir.join("run/metrics.jsonl")).unwrap();
        let mut seen = [0, 0];
        for line in metrics.lines() {
            let line: Value = serde_json::from_str(line).unwrap();
            let evaluation = line.get("eval_loss").is_some();
            holds(if evaluation { "evaluation" } else { "step" }, &line);
            seen[usize::from(evaluation)] += 1;
        }
        assert_eq!(seen, [2, 2]);
        let run: Value =
            serde_json::from_str(&fs::read_to_string(dir.join("run/config.json")).unwrap()).unwrap();
        let train = keep(dir, BENCH_TRAIN, "train.json");
        holds("bench_train", &train);
        for key in ["llama_cpp", "patch_hash", "driver"] {
            assert_eq!(run["how"]["build"][key], train[key]);
            assert_eq!(room.train[key], train[key]);
        }
        assert!(train["llama_cpp"].as_str().unwrap().starts_with("llama-cpp-sys-2 0."), "{train}");
        assert_eq!(train["flags"].as_array().unwrap().len(), BENCH_TRAIN.split_whitespace().count());
        assert_eq!(run["model_hash"], room.train["model_hash"]);
        let layouts = BENCH_TRAIN.replace("--parts 1", "--layout packed,padded");
        holds("bench_train", &object(qvac(dir, &layouts)));
        holds("bench_infer", &keep(dir, BENCH_INFER, "infer.json"));
        let answers = "bench infer nano:tq1_0 nano:tq2_0 --devices cpu --threads 1 --reps 2 --json --exact";
        let answers = object(qvac(dir, answers));
        holds("bench_infer", &answers);
        assert_eq!(answers["runs"][1]["exact"], 1);
        let memory =
            "bench memory nano.gguf nano:f16 --device cpu --threads 1 --context 64 --seq-len 32 --json";
        holds("bench_memory", &keep(dir, memory, "memory.json"));
        let plan = "plan --shape nano --device cpu --threads 1 --calibrate 0.1 --seq-len 32 --json";
        holds("plan", &object(qvac(dir, &format!("{plan} --measure"))));
        let none = qvac(dir, &format!("{plan} --memory 1KiB"));
        assert_eq!(none.status.code(), Some(1), "{}", stderr(&none));
        holds("plan", &serde_json::from_slice(&none.stdout).unwrap());
        holds("verify", &object(qvac(dir, "verify -m nano.gguf --device cpu --tier t0 --threads 1 --json")));
        let kernels =
            "bench kernels --shape nano --device cpu --threads 1 --tokens 8 --reps 1 --filter norm --json";
        holds("bench_kernels", &keep(dir, kernels, "kernels.json"));
        holds("comparison", &object(qvac(dir, "bench compare train.json train.json --json")));

        // What it is there for: a field that is gone, of another type, or new, is seen.
        let spoilt = |edit: fn(&mut Value)| {
            let mut spoilt = train.clone();
            edit(&mut spoilt);
            errors("bench_train", &spoilt).len()
        };
        assert_eq!(spoilt(|_| {}), 0);
        assert_ne!(spoilt(|v| drop(v.as_object_mut().unwrap().remove("patch_hash"))), 0);
        assert_ne!(spoilt(|v| v["seed"] = "42".into()), 0);
        assert_ne!(spoilt(|v| v["tests"][0]["new"] = 1.into()), 0);
        assert_ne!(spoilt(|v| v["new"] = 1.into()), 0);
    }
}

mod compare {
    use super::*;

    /// A result as versions before the schema wrote them.
    fn result(shape: &str, device: &str, test: &str, speed: f64, bytes: u64) -> Value {
        json!({
            "version": "0.1.0", "commit": null, "model": null, "name": format!("synthetic bitnet-{shape} (tq2_0, seed 42)"),
            "file_bytes": 1000, "n_params": 1000, "type": "tq2_0", "device": device,
            "device_description": format!("the {device} device"), "driver": null, "threads": 2,
            "tests": [{
                "test": test, "seq_len": 512, "batch_tokens": 512, "recompute": true, "peak_device_bytes": bytes,
                "tokens_per_second": { "median": speed, "min": 0.98 * speed, "max": 1.01 * speed },
            }],
        })
    }

    fn write(dir: &Path, name: &str, results: &[Value]) {
        let lines: Vec<String> = results.iter().map(Value::to_string).collect();
        fs::write(dir.join(name), lines.join("\n")).unwrap();
    }

    fn room() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) =
            (result("1b", "vulkan0", "train512", 18_980.0, 810), result("1b", "cpu", "pp512", 321.0, 900));
        write(dir.path(), "old.jsonl", &[a, b, result("7b", "cpu", "tg256", 5.0, 1)]);
        let (a, b) =
            (result("1b", "vulkan0", "train512", 20_000.0, 790), result("1b", "cpu", "pp512", 299.0, 900));
        write(dir.path(), "new.jsonl", &[a, b]);
        write(dir.path(), "other.jsonl", &[result("1b", "vulkan1", "train512", 1.0, 1)]);
        dir
    }

    #[test]
    fn ratios_stand_in_a_table() {
        let dir = room();
        let output = ok(qvac(dir.path(), "bench compare old.jsonl new.jsonl"));
        assert_eq!(
            String::from_utf8(output.stdout.clone()).unwrap(),
            "\
| model           | test     |  device | old tok/s | new tok/s | new/old |  from |    to | memory |
| --------------- | -------- | ------: | --------: | --------: | ------: | ----: | ----: | -----: |
| bitnet-1b TQ2_0 | train512 | vulkan0 |   18980.0 |   20000.0 |   1.054 | 1.022 | 1.086 |  0.975 |
| bitnet-1b TQ2_0 | pp512    |     cpu |     321.0 |     299.0 |   0.931 | 0.904 | 0.960 |  1.000 |
"
        );
        assert_eq!(stderr(&output), "only in `old.jsonl`: bitnet-7b TQ2_0, tg256, cpu\n");
    }

    #[test]
    fn the_gate_closes_below_its_limit() {
        let dir = room();
        for (flags, code) in [("", 0), ("--fail-below 0.93", 0), ("--fail-below 0.95", 1)] {
            let output = qvac(dir.path(), &format!("bench compare old.jsonl new.jsonl -q {flags}"));
            assert_eq!(output.status.code(), Some(code), "{flags}: {}", stderr(&output));
            let told = match code {
                1 => "warning: bitnet-1b TQ2_0, pp512 on cpu: 0.931 of the old throughput, at least 0.95 is asked for\n",
                _ => "",
            };
            assert_eq!(stderr(&output), told);
        }
        let output = qvac(dir.path(), "bench compare old.jsonl new.jsonl --fail-below 0.95 --json");
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!((output.status.code(), &report["passed"]), (Some(1), &false.into()));
        assert!(
            (report["ratios"][0]["ratio"]["median"].as_f64().unwrap() - 20_000.0 / 18_980.0).abs() < 1e-9
        );
    }

    #[test]
    fn what_cannot_be_compared_exits_with_2() {
        let dir = room();
        fs::write(dir.path().join("text.json"), "not JSON").unwrap();
        fs::write(dir.path().join("object.json"), "{\"a\":1}").unwrap();
        fs::write(dir.path().join("empty.json"), "").unwrap();
        let memory = r#"{"device":"cpu","models":[{"model":"m"}]}"#;
        fs::write(dir.path().join("memory.json"), memory).unwrap();
        for (line, word) in [
            ("old.jsonl other.jsonl", "no measurement of `old.jsonl` was taken again in `other.jsonl`"),
            ("old.jsonl missing.json", "cannot read `missing.json`"),
            ("text.json old.jsonl", "`text.json`:1: not JSON"),
            ("object.json old.jsonl", "hint: give it a run's folder, or what `bench train`"),
            ("memory.json memory.json", "`memory.json` holds no throughput"),
            ("empty.json old.jsonl", "`empty.json` holds nothing"),
            ("old.jsonl new.jsonl --fail-below 0", "--fail-below"),
        ] {
            let output = qvac(dir.path(), &format!("bench compare {line}"));
            assert_eq!(output.status.code(), Some(2), "{line}: {}", stderr(&output));
            assert!(output.stdout.is_empty(), "{line}");
            assert!(stderr(&output).contains(word), "{line}: {}", stderr(&output));
        }
    }
}

mod pages {
    use super::*;

    #[test]
    fn runs_and_measurements_become_pages_and_pictures() {
        let room = room(40);
        let dir = room.dir.path();
        assert_eq!(room.train["report"], "run/report.html");
        keep(dir, BENCH_TRAIN, "train.json");
        keep(dir, BENCH_INFER, "infer.json");
        let memory =
            "bench memory nano:tq2_0 nano:f16 --device cpu --threads 1 --context 64 --seq-len 32 --json";
        keep(dir, memory, "memory.json");
        let kernels =
            "bench kernels --shape nano --device cpu --threads 1 --tokens 8 --reps 1 --filter rope --json";
        keep(dir, kernels, "kernels.json");
        let line = "report run train.json infer.json memory.json kernels.json -o all.html --markdown all.md \
                    --svg plots --png plots";
        let told = String::from_utf8(ok(qvac(dir, line)).stdout).unwrap();
        let files: Vec<&str> = told.lines().collect();
        assert_eq!(files[..2], ["all.html", "all.md"]);
        let page = fs::read_to_string(dir.join("all.html")).unwrap();
        let beside = fs::read_to_string(dir.join("run/report.html")).unwrap();
        for (page, charts) in [
            (
                &page,
                &[
                    "loss",
                    "memory",
                    "train-speed",
                    "generate-speed",
                    "generate-memory",
                    "step-parts",
                    "memory-of-models",
                ][..],
            ),
            (&beside, &["loss", "accuracy", "learning-rate", "gradient-norm", "tokens-per-second", "memory"]),
        ] {
            for chart in charts {
                assert!(page.contains(&format!("<figure id=\"{chart}\">")), "`{chart}`");
            }
            // Nothing is fetched: a namespace is a name.
            let links = page.replace("http://www.w3.org/2000/svg", "");
            for word in ["http:", "https:", "src=", "url(", "@import"] {
                assert!(!links.contains(word), "`{word}`");
            }
        }
        assert!(page.contains("<h2>Kernels</h2>"), "tables");
        assert!(page.contains("bitnet-nano TQ2_0") && page.contains("llama-cpp-sys-2"), "tables");
        assert!(!beside.contains("train-speed"), "a run alone has no bars");
        let pictures = &files[2..];
        assert!(pictures.len() > 12 && pictures.len() % 2 == 0, "{told}");
        for picture in pictures {
            let bytes = fs::read(dir.join(picture)).unwrap();
            match picture.ends_with(".svg") {
                true => assert!(bytes.starts_with(b"<svg ") && bytes.ends_with(b"</svg>\n"), "`{picture}`"),
                false => assert!(bytes.starts_with(b"\x89PNG\r\n") && bytes.len() > 5_000, "`{picture}`"),
            }
        }
        let text = fs::read_to_string(dir.join("all.md")).unwrap();
        assert!(
            text.contains("![") && text.contains("(plots/loss.svg)") && text.contains("| nano:f16 | cpu |"),
            "{text}"
        );

        let report = object(qvac(dir, "report train.json --json"));
        assert_eq!((&report["html"], &report["measurements"]), (&"report.html".into(), &1.into()));
        // TensorBoard's files, as `train --tensorboard` named their folder.
        let events: Vec<_> = fs::read_dir(dir.join("run/tensorboard")).unwrap().collect();
        assert_eq!(events.len(), 1);
        let events = fs::read(events[0].as_ref().unwrap().path()).unwrap();
        for tag in ["train/loss", "train/learning_rate", "eval/loss", "memory/host_bytes"] {
            assert!(events.windows(tag.len()).any(|w| w == tag.as_bytes()), "`{tag}`");
        }
    }

    #[test]
    fn what_is_no_run_exits_with_2() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("bare")).unwrap();
        fs::create_dir(dir.path().join("cut")).unwrap();
        let step = r#"{"step":1,"loss":2.0}"#;
        fs::write(dir.path().join("cut/metrics.jsonl"), format!("{step}\n{{\"step\":2,\"lo")).unwrap();
        fs::create_dir(dir.path().join("bad")).unwrap();
        fs::write(dir.path().join("bad/metrics.jsonl"), format!("nonsense\n{step}\n")).unwrap();
        for (line, word) in [
            ("report", "RUN_OR_BENCH"),
            ("report missing", "cannot read `missing`"),
            ("report bare", "`bare` has no `metrics.jsonl`"),
            ("report bad", "`bad/metrics.jsonl`:1: not a line of metrics"),
            ("report cut -o no/such/folder.html", "cannot write `no/such/folder.html`"),
        ] {
            let output = qvac(dir.path(), line);
            assert_eq!(output.status.code(), Some(2), "{line}: {}", stderr(&output));
            assert!(stderr(&output).contains(word), "{line}: {}", stderr(&output));
        }
        // A run that goes on, read while a line is written.
        ok(qvac(dir.path(), "report cut"));
        assert!(dir.path().join("cut/report.html").is_file());
    }
}

mod browser {
    use super::*;

    /// The browser to test with, or none where that is waived.
    fn browser() -> Option<PathBuf> {
        let named = std::env::var_os("QVAC_BROWSER").map(PathBuf::from);
        let names = ["chromium-headless-shell", "chromium", "chromium-browser", "google-chrome"];
        let folders: Vec<PathBuf> =
            std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()).collect();
        let found = names.iter().find_map(|n| folders.iter().map(|f| f.join(n)).find(|p| p.is_file()));
        if std::env::var_os("QVAC_NO_BROWSER").is_some_and(|v| v == "1") {
            eprintln!("WARNING: QVAC_NO_BROWSER=1: no page was opened in a browser");
            return None;
        }
        let found = named.or(found);
        assert!(
            found.is_some(),
            "no browser: `scripts/bootstrap --ci` installs one; QVAC_NO_BROWSER=1 goes on without"
        );
        found
    }

    fn open(browser: &Path, dir: &Path, page: &str, flags: &[&str]) -> Output {
        let output = Command::new(browser)
            .args([
                "--headless",
                "--no-sandbox",
                "--disable-gpu",
                "--hide-scrollbars",
                "--enable-logging=stderr",
            ])
            .args(["--host-resolver-rules=MAP * ~NOTFOUND", "--timeout=20000"])
            .args(flags)
            .arg(format!("file://{}", dir.join(page).display()))
            .env("HOME", dir)
            .current_dir(dir)
            .stdin(Stdio::null())
            .output()
            .expect("the browser starts");
        let log = stderr(&output);
        assert!(output.status.success(), "{log}");
        assert!(!log.contains("CONSOLE"), "the page complains: {log}");
        output
    }

    #[test]
    fn a_page_opens_in_a_browser() {
        let Some(browser) = browser() else { return };
        let room = room(40);
        let dir = room.dir.path().canonicalize().unwrap();
        keep(&dir, BENCH_TRAIN, "train.json");
        ok(qvac(&dir, "report run train.json -o page.html"));
        open(&browser, &dir, "page.html", &["--window-size=1280,2000", "--screenshot=page.png"]);
        assert!(fs::read(dir.join("page.png")).unwrap().len() > 50_000, "the picture has something on it");

        // A pointer over the first picture is told the value there; what follows is told by the page about itself.
        let page = fs::read_to_string(dir.join("page.html")).unwrap();
        let probe = r##"<script>
            const box = document.querySelector("#loss svg").getBoundingClientRect();
            document.querySelector("#loss .plot").dispatchEvent(
                new PointerEvent("pointermove", { clientX: box.left + box.width / 2, clientY: box.top + box.height / 2 }));
            const wide = document.documentElement.scrollWidth > innerWidth;
            const low = [...document.querySelectorAll("figure svg")].filter(s => s.getBoundingClientRect().height < 30);
            document.body.dataset.probe = `wide ${wide}, low ${low.length}`;
        </script></body>"##;
        fs::write(dir.join("probe.html"), page.replace("</body>", probe)).unwrap();
        for size in ["--window-size=1280,900", "--window-size=500,900"] {
            let output = open(&browser, &dir, "probe.html", &[size, "--dump-dom"]);
            let dom = String::from_utf8_lossy(&output.stdout).into_owned();
            let told = dom.split("data-probe=").nth(1).unwrap_or_default().split('>').next().unwrap();
            assert_eq!(told, "\"wide false, low 0\"", "{size}: the page fits its window");
            let tip = dom.split("class=\"tip\"").nth(1).expect("a tip").split("</figure>").next().unwrap();
            assert!(tip.contains("step ") && tip.contains("training") && tip.contains("<b>"), "{tip}");
        }
    }
}
