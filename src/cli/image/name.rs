//! Image specs on the command line.

use std::str::FromStr;

/// `POOL[/NAMESPACE]/NAME`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ImageName {
    pub(super) pool: String,
    pub(super) namespace: String,
    pub(super) name: String,
}

impl FromStr for ImageName {
    type Err = String;

    fn from_str(text: &str) -> Result<ImageName, String> {
        let parts: Vec<_> = text.split('/').collect();
        let (pool, namespace, name) = match parts[..] {
            [pool, name] => (pool, "", name),
            [pool, namespace, name] if !namespace.is_empty() => (pool, namespace, name),
            _ => return Err("an image is written POOL/NAME or POOL/NAMESPACE/NAME".to_owned()),
        };
        if pool.is_empty() || name.is_empty() || name.contains('@') {
            return Err("an image is written POOL/NAME or POOL/NAMESPACE/NAME".to_owned());
        }
        Ok(ImageName {
            pool: pool.to_owned(),
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        })
    }
}

/// `POOL[/NAMESPACE]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PoolName {
    pub(super) pool: String,
    pub(super) namespace: String,
}

impl FromStr for PoolName {
    type Err = String;

    fn from_str(text: &str) -> Result<PoolName, String> {
        let (pool, namespace) = text.split_once('/').unwrap_or((text, ""));
        if pool.is_empty() || text.ends_with('/') || namespace.contains('/') {
            return Err("a pool is written POOL or POOL/NAMESPACE".to_owned());
        }
        Ok(PoolName { pool: pool.to_owned(), namespace: namespace.to_owned() })
    }
}
