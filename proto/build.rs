//! Compiles the `.proto` files without `protoc`: protox reads them; prost and tonic generate the Rust code.

use std::{env, error::Error, fs, path::PathBuf};

use protox::prost::Message;

/// The package's files; protox provides the well-known types that they import.
const FILES: [&str; 1] = ["kalamdb/live/v1/live.proto"];

fn main() -> Result<(), Box<dyn Error>> {
    let root = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?);
    for file in FILES {
        println!("cargo::rerun-if-changed={}", root.join(file).display());
    }
    let descriptors = protox::compile(FILES, [&root])?;
    let out = PathBuf::from(env::var("OUT_DIR")?);
    fs::write(out.join("descriptors.bin"), descriptors.encode_to_vec())?;

    tonic_prost_build::configure()
        // Batches travel as `Bytes`, so a frame shares the buffer it was encoded into.
        .bytes(".kalamdb.live.v1")
        .compile_fds(descriptors)?;
    Ok(())
}
