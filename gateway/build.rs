//! Makes a new migration a reason to compile again: the macro that embeds the folder sees only the files that were there.

fn main() {
    println!("cargo:rerun-if-changed=../migrations");
}
