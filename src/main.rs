//! The `qvac-ft` program: everything it does is in the library's `cli`.

fn main() -> std::process::ExitCode {
    qvac_ft::cli::main()
}
