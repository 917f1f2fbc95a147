//! argv → front; error → exit code.

fn main() -> std::process::ExitCode {
    ocimig::cli::main()
}
