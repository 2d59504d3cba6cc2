//! The watches of a client of krbd's, in its list of requests in debugfs (`osdc`).

use super::super::attach::Watch;

/// Whether the client of the list `requests` watches the object `object` in the pool with the id
/// `pool`.
///
/// A watch is a line under `LINGER REQUESTS`, its columns separated by tabs: its id, the OSD, pool
/// and hash, …, the object (behind its namespace and a slash, if it is in one), …, and at last
/// `WC/0`: it is a watch, the OSD has it, and no error has come since.
pub(super) fn find(requests: &str, pool: &str, object: &str) -> Watch {
    let mut lines = requests.lines().skip_while(|line| *line != "LINGER REQUESTS");
    if lines.next().is_none() {
        return Watch::Unknown;
    }
    let is_of = |columns: &[&str]| {
        let in_pool = columns
            .get(2)
            .and_then(|place| place.split_once('.'))
            .is_some_and(|(id, _)| id == pool);
        in_pool && columns.iter().any(|column| column.rsplit('/').next() == Some(object))
    };
    let held = lines.take_while(|line| *line != "BACKOFFS").any(|line| {
        let columns: Vec<_> = line.split('\t').collect();
        is_of(&columns) && columns.last() == Some(&"WC/0")
    });
    if held { Watch::Held } else { Watch::Lost }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_watch_is_held_when_the_osd_has_it_and_no_error_has_come() {
        let list = |end: &str| {
            format!(
                "REQUESTS 1 homeless 0\n7\tosd0\t2.1\t2.1\t[0]/0\t[0]/0\te9\trbd_header.ab\t0x1\t1\tread\nLINGER REQUESTS\n\
                 1\tosd0\t2.7cf7\t2.7\t[0]/0\t[0]/0\te19\t{end}\nBACKOFFS\n"
            )
        };
        for (end, pool, watch) in [
            ("rbd_header.ab\t0x20\t0\tWC/0", "2", Watch::Held),
            ("tenant/rbd_header.ab\t0x20\t3\tWC/0", "2", Watch::Held),
            ("rbd_header.ab\t0x20\tP\t0\tW/0", "2", Watch::Lost),
            ("rbd_header.ab\t0x20\t0\tWC/-107", "2", Watch::Lost),
            ("rbd_header.ab\t0x20\t0\tNC/0", "2", Watch::Lost),
            ("rbd_header.abc\t0x20\t0\tWC/0", "2", Watch::Lost),
            ("rbd_header.ab\t0x20\t0\tWC/0", "3", Watch::Lost),
        ] {
            assert_eq!(find(&list(end), pool, "rbd_header.ab"), watch, "{end}");
        }
        assert_eq!(find("REQUESTS 0 homeless 0\n", "2", "rbd_header.ab"), Watch::Unknown);
    }
}
