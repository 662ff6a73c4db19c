//! The fleet's cursor, as far as this process moved it: who waits for changes is told when it moves.

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

    /// Tells those who wait that the cursor stands here now; an older one is no news.
    pub fn changed(&self, cursor: Cursor) {
        self.cursor.send_if_modified(|held| {
            let newer = cursor > *held;
            *held = cursor.max(*held);
            newer
        });
    }

    /// Listens from now on: what happens after this call is not missed.
    pub fn listen(&self) -> watch::Receiver<Cursor> {
        self.cursor.subscribe()
    }

    /// How many listen.
    pub fn listeners(&self) -> usize {
        self.cursor.receiver_count()
    }
}
