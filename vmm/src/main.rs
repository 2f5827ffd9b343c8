//! The `vmm` program.

use std::process::ExitCode;

use vmm::cli::{Cli, Early};
use vmm::config::{self, Config};
use vmm::daemon::Side;
use vmm::{Error, app, daemon, report};

// The unwinder from libgcc_eh.a, so that the shared libgcc_s, which std asks for, is not needed and
// not linked: to load it, with a constructor full of CPUID, takes a twentieth of the time to the
// guest's first instruction.
#[cfg(target_env = "gnu")]
#[link(name = "gcc_eh", kind = "static", modifiers = "-bundle")]
unsafe extern "C" {}

fn main() -> ExitCode {
    let cli = match Cli::read(std::env::args_os()) {
        Ok(cli) => cli,
        Err(Early::Print(text)) => return print(&text),
        Err(Early::Error(text)) => {
            report::note(&text);
            return ExitCode::FAILURE;
        }
    };
    if let Some(kind) = cli.generate {
        let result = Cli::generate(kind, &mut std::io::stdout());
        return if result.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    }
    match config::help(&cli) {
        Ok(None) => {}
        Ok(Some(text)) => return print(&text),
        Err(error) => {
            report::error(&error);
            return ExitCode::FAILURE;
        }
    }
    app::restore_terminal_on_panic();
    match Config::new(cli) {
        Ok(config) => run(config),
        Err(error) => conclude(Err(error.into())),
    }
}

/// The exit status of a machine that has ended, or why there was none.
fn conclude(result: Result<u8, Error>) -> ExitCode {
    match result {
        Ok(status) => ExitCode::from(status),
        Err(error) => {
            report::error(&error);
            ExitCode::FAILURE
        }
    }
}

fn run(config: Config) -> ExitCode {
    if !config.daemonize {
        return conclude(app::run(config, || ()));
    }
    // SAFETY: no thread has been made yet.
    match unsafe { daemon::fork() } {
        Err(error) => conclude(Err(error)),
        Ok(Side::Front(front)) => conclude(Ok(if front.wait() { 0 } else { 1 })),
        Ok(Side::Background(background)) => {
            let mut waiting = Some(background);
            let result = app::run(config, || {
                if let Some(background) = waiting.take() {
                    background.ready();
                }
            });
            let code = conclude(result);
            // The process in front ends by this, and so after the error has been said.
            drop(waiting);
            code
        }
    }
}

fn print(text: &str) -> ExitCode {
    use std::io::Write;
    // A closed pipe (`vmm --help | head`) is not worth a word.
    let _ = std::io::stdout().write_all(text.as_bytes());
    ExitCode::SUCCESS
}
