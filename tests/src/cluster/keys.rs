//! Keys, certificates and kubeconfigs of one control plane; its authority signs for nobody else.

use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use anyhow::Context;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};
use serde_json::{Value, json};

/// The first addresses of the networks of Services: the API server's own Service.
const API_SERVICE: [&str; 2] = ["10.96.0.1", "fd00:96::1"];

/// Names that pods know the API server by.
const API_NAMES: [&str; 3] = ["localhost", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local"];

/// Files of the control plane, in one directory.
pub(super) struct Keys {
    directory: PathBuf,
    server: String,
    authority: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Keys {
    /// Makes all of them, for an API server at this address.
    pub(super) fn make(directory: &Path, address: IpAddr) -> anyhow::Result<Self> {
        fs::create_dir_all(directory).with_context(|| format!("cannot make {}", directory.display()))?;
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "lab");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate()?;
        let authority = params.self_signed(&key)?.pem();
        let server = format!("https://{address}:6443");
        let key_text = key.serialize_pem();
        let issuer = Issuer::new(params, key);
        let keys = Self { directory: directory.to_owned(), server, authority, issuer };
        keys.write("ca.crt", &keys.authority)?;
        keys.write("ca.key", &key_text)?;

        let names = API_NAMES.into_iter().chain(API_SERVICE).map(str::to_owned);
        let names: Vec<String> = names.chain([address.to_string(), "127.0.0.1".to_owned()]).collect();
        let (certificate, key) = signed(&keys.issuer, "kube-apiserver", None, names)?;
        keys.write("apiserver.crt", &certificate)?;
        keys.write("apiserver.key", &key)?;
        let accounts = KeyPair::generate()?;
        keys.write("service-accounts.key", &accounts.serialize_pem())?;
        keys.write("service-accounts.pub", &accounts.public_key_pem())?;
        for (file, name, group) in [
            ("admin", "admin", Some("system:masters")),
            ("controller-manager", "system:kube-controller-manager", None),
            ("kube-proxy", "system:kube-proxy", None),
            // As whom the API server asks kubelets.
            ("kubelet-client", "kubelet-client", Some("system:masters")),
            ("scheduler", "system:kube-scheduler", None),
        ] {
            keys.client(file, name, group)?;
        }
        Ok(keys)
    }

    /// A kubelet's certificate, by which the API server knows what pods it may speak of; its kubeconfig.
    pub(super) fn node(&self, name: &str) -> anyhow::Result<PathBuf> {
        self.client(&format!("node-{name}"), &format!("system:node:{name}"), Some("system:nodes"))
    }

    /// The kubeconfig of whom [`Keys::node`] knows.
    pub(super) fn node_kubeconfig(&self, name: &str) -> PathBuf {
        self.path(&format!("node-{name}.kubeconfig"))
    }

    /// A certificate of a client, in these files, and a kubeconfig with it.
    fn client(&self, file: &str, name: &str, group: Option<&str>) -> anyhow::Result<PathBuf> {
        let (certificate, key) = signed(&self.issuer, name, group, Vec::new())?;
        self.write(&format!("{file}.crt"), &certificate)?;
        self.write(&format!("{file}.key"), &key)?;
        let user = json!({
            "client-certificate": self.path(&format!("{file}.crt")),
            "client-key": self.path(&format!("{file}.key")),
        });
        let kubeconfig = format!("{file}.kubeconfig");
        self.write(&kubeconfig, &self.kubeconfig(&user).to_string())?;
        Ok(self.path(&kubeconfig))
    }

    /// A file by its name.
    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// A kubeconfig of this user.
    pub(super) fn kubeconfig(&self, user: &Value) -> Value {
        json!({
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "lab",
            "clusters": [{ "name": "lab", "cluster": {
                "server": self.server, "certificate-authority": self.path("ca.crt"),
            } }],
            "users": [{ "name": "lab", "user": user }],
            "contexts": [{ "name": "lab", "context": { "cluster": "lab", "user": "lab" } }],
        })
    }

    fn write(&self, name: &str, text: &str) -> anyhow::Result<()> {
        let path = self.path(name);
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
    }
}

/// A certificate for clients and servers, and its key, as PEM.
fn signed(
    issuer: &Issuer<'_, KeyPair>,
    name: &str,
    group: Option<&str>,
    names: Vec<String>,
) -> anyhow::Result<(String, String)> {
    let mut params = CertificateParams::new(names)?;
    params.distinguished_name.push(DnType::CommonName, name);
    if let Some(group) = group {
        params.distinguished_name.push(DnType::OrganizationName, group);
    }
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    let key = KeyPair::generate()?;
    Ok((params.signed_by(&key, issuer)?.pem(), key.serialize_pem()))
}
