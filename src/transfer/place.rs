use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;

use url::Url;

use super::object::Object;

/// The side of a transfer that is not an image.
#[derive(Clone)]
pub enum Place {
    /// Standard input or output.
    Stream,
    /// A file, by its path.
    File(PathBuf),
    /// An object of an object store, by its URL.
    Url(Url),
    /// An object of a store that the caller has: its name for messages, and what opens it.
    Store(String, Opener),
}

/// Opens an object.
pub type Opener = Arc<dyn Fn() -> super::Result<Object> + Send + Sync>;

impl FromStr for Place {
    type Err = String;

    /// `-`, a path, or a URL.
    fn from_str(text: &str) -> Result<Place, String> {
        if text == "-" {
            return Ok(Place::Stream);
        }
        if text.is_empty() {
            return Err("an empty name is no file".to_owned());
        }
        if !text.contains("://") {
            return Ok(Place::File(text.into()));
        }
        let url = Url::parse(text).map_err(|why| format!("{text} is no URL: {why}"))?;
        if !url.username().is_empty() || url.password().is_some() || url.query().is_some() {
            // Not said with the text: what is secret in it was in the arguments already.
            return Err("a URL here has no user, password or query: credentials belong in the \
                 environment (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY), since everybody on the machine \
                 can read arguments"
                .to_owned());
        }
        match url.scheme() {
            "s3" | "http" | "https" => Ok(Place::Url(url)),
            "file" => {
                let path = url.to_file_path();
                path.map(Place::File).map_err(|()| format!("{text} is no path of a file"))
            }
            scheme => Err(format!("{scheme}:// is not known here: s3, http, https or file")),
        }
    }
}

/// For messages and records.
impl fmt::Display for Place {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Stream => formatter.write_str("-"),
            Place::File(path) => path.display().fmt(formatter),
            Place::Url(url) => url.fmt(formatter),
            Place::Store(name, _) => formatter.write_str(name),
        }
    }
}

impl fmt::Debug for Place {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Place({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_told_apart_and_secrets_are_refused() {
        let read = |text: &str| text.parse::<Place>();
        assert!(matches!(read("-"), Ok(Place::Stream)));
        assert!(matches!(read("a:b"), Ok(Place::File(_))));
        assert!(matches!(read("file:///a/b"), Ok(Place::File(path)) if path.ends_with("a/b")));
        assert!(matches!(read("s3://bucket/a/b"), Ok(Place::Url(_))));
        for secret in ["s3://key:geheim@bucket/a", "https://host/a?X-Amz-Signature=geheim"] {
            let why = read(secret).unwrap_err();
            assert!(why.contains("environment") && !why.contains("geheim"), "{why}");
        }
        assert!(read("gopher://host/a").unwrap_err().contains("not known here"));
    }
}
