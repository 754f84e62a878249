//! Everything a person runs on Corten: build, image, deb, run, test, bench, lint.

mod bench;
mod build;
mod cli;
mod console;
mod cpio;
mod deb;
mod debian;
mod dom0;
mod engine;
mod image;
mod layout;
mod lint;
mod once;
mod packages;
mod paths;
mod progress;
mod run;
mod symbols;
mod test;
mod toolstack;

use clap::Parser;

fn main() -> std::process::ExitCode {
    match cli::Cli::parse().dispatch() {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            std::process::ExitCode::FAILURE
        }
    }
}
