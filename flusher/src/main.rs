//! The program `sheaf`. Everything is in the library.

fn main() -> std::process::ExitCode {
    sheaf_flusher::cli::main()
}
