//! Compiles the `.proto` files without `protoc`: protox reads them, prost and tonic write the Rust side.

use std::{env, error::Error, fs, path::PathBuf};

use protox::prost::Message;

/// The files of the package; imports are found through the well-known types protox carries.
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
        // Batches travel as `Bytes`, so that a frame shares the buffer it was encoded into.
        .bytes(".kalamdb.live.v1")
        .compile_fds(descriptors)?;
    Ok(())
}
