//! Makes Rust of KEDA's protocol, without a `protoc` on the machine.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=proto/externalscaler.proto");
    let files = protox::compile(["proto/externalscaler.proto"], ["proto"])?;
    tonic_prost_build::configure().compile_fds(files)?;
    Ok(())
}
