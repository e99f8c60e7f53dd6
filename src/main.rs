//! The `qvac-ft` program: everything it does is in the library's `cli`.

fn main() -> std::process::ExitCode {
    std::process::ExitCode::SUCCESS
}
