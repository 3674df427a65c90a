//! The binary: hands the process over to the command line.

fn main() -> std::process::ExitCode {
    hivemind_worker::cli::main(std::env::args_os().skip(1))
}
