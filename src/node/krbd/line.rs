//! The line an image is mapped by: monitors, options, pool, image, snapshot.

use std::net::ToSocketAddrs;

use super::super::attach::Image;
use super::super::error::{Error, Result};
use super::super::kernel_key::linux_version;
use super::super::map_options::MapOptions;
use super::super::monitors;

/// How long krbd looks for a monitor that answers, in seconds. Less than a write to its files may
/// take.
const MONITOR_PATIENCE: u32 = 30;

/// The first Linux that speaks the second protocol of Ceph.
const LINUX_WITH_V2: (u32, u32) = (5, 11);

/// What stands for the key in lines that are kept or shown.
pub(super) const HIDDEN: &str = "hidden";

/// The line that maps `image` itself, and no snapshot. `credential` is the option that says where
/// the key is.
pub(super) fn line(
    image: &Image,
    credential: &str,
    read_only: bool,
    options: &MapOptions,
) -> Result<String> {
    let is_word = |text: &str| !text.contains(|c: char| c.is_whitespace() || c.is_control());
    for name in [&image.pool, &image.name] {
        if name.is_empty() || !is_word(name) {
            return Err(Error::InvalidArgument(format!(
                "krbd takes no name with white space: {name:?}"
            )));
        }
    }
    let user = image.user.as_deref().unwrap_or_default();
    for name in [image.namespace.as_str(), user] {
        if !is_word(name) || name.contains([',', '=']) {
            return Err(Error::InvalidArgument(format!(
                "krbd takes no option of the value {name:?}"
            )));
        }
    }
    let given = |name: &str| {
        options.krbd.iter().find_map(|option| match option.split_once('=') {
            Some((key, value)) if key == name => Some(value),
            _ => None,
        })
    };
    let (addresses, mode) = addresses(&image.monitors, given("ms_mode"), linux_version())?;

    let mut all = Vec::new();
    if !user.is_empty() {
        all.push(format!("name={user}"));
        all.push(credential.to_owned());
    }
    if !image.namespace.is_empty() {
        all.push(format!("_pool_ns={}", image.namespace));
    }
    all.extend(mode.map(|mode| format!("ms_mode={mode}")));
    if given("mount_timeout").is_none() {
        all.push(format!("mount_timeout={MONITOR_PATIENCE}"));
    }
    // Blocklisting a client cuts off all images it has: a writer of its own for each, so that
    // fencing hits one volume, also where a StorageClass of an earlier version says `share`.
    let is_about_sharing = |option: &&String| matches!(option.as_str(), "share" | "noshare");
    if read_only {
        all.extend(options.krbd.iter().cloned());
    } else {
        all.push("noshare".to_owned());
        all.extend(options.krbd.iter().filter(|option| !is_about_sharing(option)).cloned());
    }
    all.push(if read_only { "ro" } else { "rw" }.to_owned());
    Ok(format!("{addresses} {} {} {} -", all.join(","), image.pool, image.name))
}

/// Whether `line` takes its key from a keyring, under this name.
pub(super) fn names_key(line: &str, name: &str) -> bool {
    let options = line.split_whitespace().nth(1).unwrap_or_default();
    options.split(',').any(|option| option.strip_prefix("key=") == Some(name))
}

/// The addresses of monitors for the protocol that is to be spoken, and the `ms_mode` to add: the
/// second protocol where monitors and kernel have it, unless `asked` says otherwise.
fn addresses(
    monitors: &str,
    asked: Option<&str>,
    linux: (u32, u32),
) -> Result<(String, Option<&'static str>)> {
    let monitors = monitors::parse(monitors)?;
    let v1: Vec<_> = monitors.iter().filter_map(|monitor| monitor.v1.as_deref()).collect();
    let v2: Vec<_> = monitors.iter().filter_map(|monitor| monitor.v2.as_deref()).collect();
    let (chosen, mode) = match asked {
        Some("legacy") => (v1, None),
        Some(_) => (v2, None),
        None if v1.is_empty() || !v2.is_empty() && linux >= LINUX_WITH_V2 => {
            (v2, Some("prefer-crc"))
        }
        None => (v1, None),
    };
    if chosen.is_empty() {
        return Err(Error::FailedPrecondition(format!(
            "no monitor of the volume's cluster is known by an address of the protocol that ms_mode {} takes",
            asked.unwrap_or_default()
        )));
    }
    let addresses: Result<Vec<_>> = chosen.into_iter().map(resolve).collect();
    Ok((addresses?.join(","), mode))
}

/// `host:port` with the host's address: the kernel looks up no names.
fn resolve(address: &str) -> Result<String> {
    let unknown = |why: &dyn std::fmt::Display| {
        Error::Unavailable(format!("the address of the monitor {address} cannot be found: {why}"))
    };
    let found = address.to_socket_addrs().map_err(|error| unknown(&error))?.next();
    found.map(|address| address.to_string()).ok_or_else(|| unknown(&"it has none"))
}

/// A line as krbd shows it, with the key in it hidden.
pub(super) fn without_secret(line: &str) -> String {
    match line.split_once("secret=") {
        None => line.to_owned(),
        Some((before, after)) => {
            let end = after.find([',', ' ']).unwrap_or(after.len());
            format!("{before}secret={HIDDEN}{}", &after[end..])
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image() -> Image {
        Image {
            pool: "rbd".into(),
            namespace: String::new(),
            name: "csi-a".into(),
            monitors: "[v2:10.0.0.1:3300,v1:10.0.0.1:6789],[v2:[::1]:3300,v1:[::1]:6789]".into(),
            user: Some("csi".into()),
        }
    }

    #[test]
    fn the_key_of_a_line_is_known_by_its_whole_name() {
        let line =
            "[v2:10.0.0.1:3300] name=csi,key=cinderblock-ab,noshare,rw rbd key=cinderblock-cd -";
        assert!(names_key(line, "cinderblock-ab"));
        assert!(!names_key(line, "cinderblock-a"));
        assert!(!names_key(line, "cinderblock-cd"));
        assert!(!names_key("", "cinderblock-ab"));
    }

    #[test]
    fn a_line_has_it_all_and_in_its_order() {
        let options =
            MapOptions::parse("queue_depth=8,ms_mode=legacy,mount_timeout=5;nbd:notrim").unwrap();
        assert_eq!(
            line(&image(), "key=k", false, &options).unwrap(),
            "10.0.0.1:6789,[::1]:6789 name=csi,key=k,noshare,queue_depth=8,ms_mode=legacy,mount_timeout=5,rw rbd csi-a -"
        );
        let options = MapOptions::parse("share,ms_mode=legacy,mount_timeout=5").unwrap();
        for (read_only, expected) in [
            (false, "noshare,ms_mode=legacy,mount_timeout=5,rw"),
            (true, "share,ms_mode=legacy,mount_timeout=5,ro"),
        ] {
            assert_eq!(
                line(&image(), "key=k", read_only, &options).unwrap(),
                format!("10.0.0.1:6789,[::1]:6789 name=csi,key=k,{expected} rbd csi-a -")
            );
        }
        let open = Image { namespace: "tenant".into(), user: None, ..image() };
        let options = MapOptions::parse("ms_mode=secure").unwrap();
        assert_eq!(
            line(&open, "key=k", true, &options).unwrap(),
            "10.0.0.1:3300,[::1]:3300 _pool_ns=tenant,mount_timeout=30,ms_mode=secure,ro rbd csi-a -"
        );
    }

    #[test]
    fn no_name_smuggles_in_an_option() {
        let none = MapOptions::default();
        for broken in [
            Image { name: "a b".into(), ..image() },
            Image { name: String::new(), ..image() },
            Image { pool: "a\nb".into(), ..image() },
            Image { namespace: "a,name=admin".into(), ..image() },
            Image { user: Some("a,secret=x".into()), ..image() },
            Image { monitors: "10.0.0.1 name=admin".into(), ..image() },
        ] {
            assert!(
                matches!(line(&broken, "key=k", false, &none), Err(Error::InvalidArgument(_))),
                "{broken:?}"
            );
        }
    }

    #[test]
    fn the_protocol_is_the_one_that_all_speak() {
        let both = "[v2:10.0.0.1:3300,v1:10.0.0.1:6789]";
        let choose = |monitors, asked, linux| addresses(monitors, asked, linux);
        let of = |address: &str, mode| (address.to_owned(), mode);
        assert_eq!(choose(both, None, (6, 1)).unwrap(), of("10.0.0.1:3300", Some("prefer-crc")));
        assert_eq!(choose(both, None, (5, 10)).unwrap(), of("10.0.0.1:6789", None));
        assert_eq!(choose(both, Some("secure"), (6, 1)).unwrap(), of("10.0.0.1:3300", None));
        assert_eq!(choose("10.0.0.1:6789", None, (6, 1)).unwrap(), of("10.0.0.1:6789", None));
        assert_eq!(
            choose("v2:10.0.0.1:5", None, (5, 10)).unwrap(),
            of("10.0.0.1:5", Some("prefer-crc"))
        );
        for (monitors, asked) in [("10.0.0.1:6789", "secure"), ("v2:10.0.0.1:5", "legacy")] {
            assert!(matches!(
                choose(monitors, Some(asked), (6, 1)),
                Err(Error::FailedPrecondition(_))
            ));
        }
    }

    #[test]
    fn a_key_in_a_line_is_hidden() {
        for (line, shown) in [
            ("m name=a,secret=AQ==,ro p i -", "m name=a,secret=hidden,ro p i -"),
            ("m name=a,secret=AQ== p i -", "m name=a,secret=hidden p i -"),
            ("m name=a,key=k p i -", "m name=a,key=k p i -"),
        ] {
            assert_eq!(without_secret(line), shown);
        }
    }
}
