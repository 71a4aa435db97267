//! The `cowshed` command.

fn main() -> std::process::ExitCode {
    cowshed::main()
}
