//! An image as an archive that container runtimes import: the layout of the OCI image specification 1.1, in a tar file.
//!
//! Invariant: the same content gives the same bytes; no clock, no user of this machine.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use anyhow::Context;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tar::{Builder, EntryType, Header};

/// What is in the image, by absolute path.
#[derive(Default)]
pub(super) struct Layer {
    programs: BTreeMap<String, Vec<u8>>,
}

impl Layer {
    pub(super) fn program(&mut self, path: &str, content: Vec<u8>) {
        self.programs.insert(path.trim_start_matches('/').to_owned(), content);
    }

    fn bytes(&self) -> anyhow::Result<Vec<u8>> {
        let mut tar = Builder::new(Vec::new());
        let mut made = BTreeSet::new();
        for (path, content) in &self.programs {
            for (end, _) in path.match_indices('/') {
                if made.insert(&path[..end]) {
                    put(&mut tar, &path[..end], EntryType::Directory, &[])?;
                }
            }
            put(&mut tar, path, EntryType::Regular, content)?;
        }
        tar.into_inner().context("cannot end the layer")
    }
}

/// What a runtime is told.
pub(super) struct Image<'a> {
    pub(super) tag: &'a str,
    pub(super) entrypoint: &'a str,
    pub(super) environment: &'a [&'a str],
    pub(super) version: &'a str,
}

impl Image<'_> {
    pub(super) fn archive(&self, layer: &Layer) -> anyhow::Result<Vec<u8>> {
        let mut blobs = BTreeMap::new();
        let layer = layer.bytes()?;
        let config = json!({
            "architecture": "amd64",
            "os": "linux",
            "config": {
                "Entrypoint": [self.entrypoint],
                "Env": self.environment,
                "Labels": { "org.opencontainers.image.version": self.version },
            },
            "rootfs": { "type": "layers", "diff_ids": [digest(&layer)] },
        });
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": blob(&mut blobs, "application/vnd.oci.image.config.v1+json", config.to_string().into_bytes()),
            "layers": [blob(&mut blobs, "application/vnd.oci.image.layer.v1.tar", layer)],
        });
        let media = "application/vnd.oci.image.manifest.v1+json";
        let mut described = blob(&mut blobs, media, manifest.to_string().into_bytes());
        described["platform"] = json!({ "architecture": "amd64", "os": "linux" });
        described["annotations"] = json!({
            "io.containerd.image.name": self.tag,
            "org.opencontainers.image.ref.name": self.tag.rsplit_once(':').map_or(self.tag, |(_, version)| version),
        });
        let index = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.index.v1+json",
            "manifests": [described],
        });
        let mut tar = Builder::new(Vec::new());
        put(
            &mut tar,
            "oci-layout",
            EntryType::Regular,
            json!({ "imageLayoutVersion": "1.0.0" }).to_string().as_bytes(),
        )?;
        put(&mut tar, "index.json", EntryType::Regular, index.to_string().as_bytes())?;
        for (digest, content) in &blobs {
            put(&mut tar, &format!("blobs/sha256/{digest}"), EntryType::Regular, content)?;
        }
        tar.into_inner().context("cannot end the archive")
    }
}

/// Keeps a blob; how others refer to it.
fn blob(blobs: &mut BTreeMap<String, Vec<u8>>, media: &str, content: Vec<u8>) -> Value {
    let digest = digest(&content);
    let described = json!({ "mediaType": media, "digest": digest, "size": content.len() });
    blobs.insert(digest["sha256:".len()..].to_owned(), content);
    described
}

fn digest(content: &[u8]) -> String {
    Sha256::digest(content).iter().fold("sha256:".to_owned(), |mut text, byte| {
        write!(text, "{byte:02x}").expect("a string takes all text");
        text
    })
}

fn put(tar: &mut Builder<Vec<u8>>, path: &str, kind: EntryType, content: &[u8]) -> anyhow::Result<()> {
    let mut header = Header::new_ustar();
    header.set_entry_type(kind);
    header.set_mode(0o755);
    header.set_mtime(0);
    header.set_size(content.len() as u64);
    tar.append_data(&mut header, path, content).with_context(|| format!("cannot add {path}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read as _;

    fn entries(archive: &[u8]) -> BTreeMap<String, Vec<u8>> {
        let mut tar = tar::Archive::new(archive);
        let read = |entry: std::io::Result<tar::Entry<'_, &[u8]>>| {
            let mut entry = entry.expect("an entry");
            let mut content = Vec::new();
            entry.read_to_end(&mut content).expect("content");
            (entry.path().expect("a path").display().to_string(), content)
        };
        tar.entries().expect("an archive").map(read).collect()
    }

    #[test]
    fn whoever_follows_the_digests_comes_to_the_programs() {
        let mut layer = Layer::default();
        layer.program("/reeve-agent", b"agent".to_vec());
        layer.program("/usr/sbin/nft", b"nft".to_vec());
        let image = Image { tag: "localhost/reeve:1", entrypoint: "/reeve-agent", environment: &["A=b"], version: "1" };
        let archive = image.archive(&layer).expect("an archive");
        assert_eq!(archive, image.archive(&layer).expect("an archive"), "the same bytes again");
        let files = entries(&archive);
        let json = |name: &str| serde_json::from_slice::<Value>(&files[name]).expect("JSON");
        let follow = |described: &Value| {
            let digest = described["digest"].as_str().expect("a digest");
            let content = &files[&format!("blobs/{}", digest.replace(':', "/"))];
            assert_eq!(
                (super::digest(content), described["size"].as_u64()),
                (digest.to_owned(), Some(content.len() as u64))
            );
            content.clone()
        };
        let index = json("index.json");
        assert_eq!(index["manifests"][0]["annotations"]["io.containerd.image.name"], "localhost/reeve:1");
        let manifest: Value = serde_json::from_slice(&follow(&index["manifests"][0])).expect("a manifest");
        let config: Value = serde_json::from_slice(&follow(&manifest["config"])).expect("a configuration");
        assert_eq!(config["config"]["Entrypoint"], json!(["/reeve-agent"]));
        let layer = follow(&manifest["layers"][0]);
        assert_eq!(config["rootfs"]["diff_ids"][0], super::digest(&layer));
        let inside = entries(&layer);
        assert_eq!(inside["usr/sbin/nft"], b"nft");
        assert!(inside.contains_key("usr/sbin"), "a directory before what is in it");
    }
}
