//! The fleet's cursor, as far as this process has moved it: wakes those who wait for changes.

use tokio::sync::watch;

use crate::store::Cursor;

#[derive(Debug)]
pub struct Notify {
    cursor: watch::Sender<Cursor>,
}

impl Notify {
    pub fn new(cursor: Cursor) -> Self {
        Self { cursor: watch::Sender::new(cursor) }
    }

    /// Wakes those who wait, with the cursor's new position; an older one is ignored.
    pub fn changed(&self, cursor: Cursor) {
        self.cursor.send_if_modified(|held| {
            let newer = cursor > *held;
            *held = cursor.max(*held);
            newer
        });
    }

    /// Subscribes: nothing that happens after this call is missed.
    pub fn listen(&self) -> watch::Receiver<Cursor> {
        self.cursor.subscribe()
    }

    /// How many subscribers there are.
    pub fn listeners(&self) -> usize {
        self.cursor.receiver_count()
    }
}
