//! Makes a new migration a reason to compile again: the macro that embeds the folder sees only the files that were there.

#[expect(clippy::print_stdout, reason = "this is how a build script speaks to cargo")]
fn main() {
    println!("cargo:rerun-if-changed=../migrations");
}
