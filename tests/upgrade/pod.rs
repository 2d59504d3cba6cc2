//! A volume that is in use all the time: its image is open and written to, as by a pod.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use cinderblock::rbd::{Image, ImageKey, OpenMode, Pool};

use super::caller::{BLOCK, block};

/// Between two writes. A pod that only writes would take the machine's processors from the daemons.
const PAUSE: Duration = Duration::from_millis(20);

pub struct Pod {
    over: Arc<AtomicBool>,
    longest: Arc<AtomicU64>,
    writer: JoinHandle<()>,
}

impl Pod {
    /// Writes to the volume's first block from now on.
    pub fn start(pool: &dyn Pool, volume_id: &str) -> Pod {
        let name = volume_id.rsplit('/').next().unwrap();
        let image = pool.open_image(ImageKey::Name(name), OpenMode::ReadWrite).unwrap();
        let (over, longest) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let writer = std::thread::spawn({
            let (over, longest) = (over.clone(), longest.clone());
            move || write(&*image, &over, &longest)
        });
        Pod { over, longest, writer }
    }

    /// The longest time a write and reading it back took since this was last asked.
    pub fn longest(&self) -> Duration {
        Duration::from_millis(self.longest.swap(0, Ordering::Relaxed))
    }

    /// Ends it; the block holds zeros then. Fails when a write failed, or read back as something
    /// else.
    pub fn stop(self) {
        self.over.store(true, Ordering::Relaxed);
        self.writer.join().unwrap();
    }
}

fn write(image: &dyn Image, over: &AtomicBool, longest: &AtomicU64) {
    let mut stamp = 1;
    while !over.load(Ordering::Relaxed) {
        write_and_read(image, stamp, longest);
        stamp += 1;
        std::thread::sleep(PAUSE);
    }
    write_and_read(image, 0, longest);
}

fn write_and_read(image: &dyn Image, stamp: u64, longest: &AtomicU64) {
    let began = Instant::now();
    image.write_at(0, &block(stamp)).unwrap();
    image.flush().unwrap();
    let mut bytes = vec![0; BLOCK];
    image.read_at(None, 0, &mut bytes).unwrap();
    assert!(bytes == block(stamp), "a pod reads another block than it wrote");
    longest.fetch_max(u64::try_from(began.elapsed().as_millis()).unwrap(), Ordering::Relaxed);
}
