//! Messages and service traits, generated from `proto/` and checked in, so that a build needs no generator. The test
//! below generates them afresh and compares; `OPEN_SPANNER_REGENERATE=1 cargo test grpc::pb` writes them anew.

/// Package `open_spanner.v1`: what every stream SDK speaks (grpc.md 2).
#[allow(clippy::all, missing_docs)]
pub mod v1 {
    include!("pb/open_spanner.v1.rs");
}

/// Package `open_spanner.v2`: streams with acknowledgements.
#[allow(clippy::all, missing_docs)]
pub mod v2 {
    include!("pb/open_spanner.v2.rs");
}

/// Both packages and what they import, for reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!("pb/descriptors.bin");

#[cfg(test)]
mod tests {
    use std::path::Path;

    use prost::Message;

    const FILES: [&str; 3] = ["open_spanner.v1.rs", "open_spanner.v2.rs", "descriptors.bin"];

    fn generate(out: &Path) {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("proto");
        let files = ["open_spanner/v1/usage.proto", "open_spanner/v2/usage_stream.proto"];
        let set = protox::compile(files, [&root]).expect("proto/ compiles");
        // comments have served their purpose once they are in the Rust code
        let mut bare = set.clone();
        bare.file.iter_mut().for_each(|file| file.source_code_info = None);
        std::fs::write(out.join("descriptors.bin"), bare.encode_to_vec()).expect("write descriptors");
        tonic_prost_build::configure()
            .btree_map(".")
            .out_dir(out)
            .compile_fds(set)
            .expect("code is generated");
    }

    #[test]
    #[expect(clippy::disallowed_methods, reason = "asked for by hand only")]
    fn checked_in_code_is_what_the_generator_makes() {
        let kept = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/grpc/pb");
        if std::env::var("OPEN_SPANNER_REGENERATE").is_ok() {
            generate(&kept);
        }
        let fresh = tempfile::tempdir().expect("a directory");
        generate(fresh.path());
        for name in FILES {
            let read = |dir: &Path| std::fs::read(dir.join(name)).expect(name);
            assert!(read(&kept) == read(fresh.path()), "{name} is out of date");
        }
    }
}
