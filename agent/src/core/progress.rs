//! How far Nix is, from its `internal-json` log, and how often that is worth reporting.
//!
//! The numbers are those of `libutil/logging.hh`, unchanged since Nix 2.0. Unknown entries are skipped: a
//! later version may add some.

use std::collections::HashMap;
use std::time::Duration;

use muster_protocol::report::{Progress, UpdateStep};
use serde::Deserialize;

const MARK: &str = "@nix ";
/// Kinds of activities.
const COPY_PATH: u64 = 100;
const FILE_TRANSFER: u64 = 101;
const COPY_PATHS: u64 = 103;
const BUILDS: u64 = 104;
const BUILD: u64 = 105;
const SUBSTITUTE: u64 = 108;
/// Kinds of results.
const BUILD_LOG_LINE: u64 = 101;
const PROGRESS: u64 = 105;
const POST_BUILD_LOG_LINE: u64 = 107;
/// The most activities tracked at once; Nix has one for each path that it is copying.
const MAX_ACTIVITIES: usize = 4096;

/// The shortest and the longest time between two events, and the most events of one step.
const FIRST: Duration = Duration::from_secs(5);
const LONGEST: Duration = Duration::from_secs(300);
const MAX_EVENTS: u32 = 64;

#[derive(Deserialize)]
struct Line {
    action: String,
    #[serde(default)]
    id: u64,
    #[serde(default, rename = "type")]
    kind: u64,
    #[serde(default)]
    msg: String,
    #[serde(default)]
    fields: Vec<serde_json::Value>,
}

/// What one activity has contributed, to be subtracted when its numbers change.
#[derive(Debug, Clone, Default)]
struct Activity {
    kind: u64,
    /// The derivation being built.
    builds: Option<String>,
    bytes: u64,
    expected: u64,
}

/// Adds up the log of a Nix process.
#[derive(Debug)]
pub struct Tracker {
    activities: HashMap<u64, Activity>,
    progress: Progress,
}

impl Tracker {
    pub fn new(step: UpdateStep) -> Self {
        let progress = Progress {
            step,
            built: 0,
            to_build: 0,
            building: 0,
            copied: 0,
            to_copy: 0,
            bytes: 0,
            bytes_expected: 0,
            current: None,
        };
        Self { activities: HashMap::new(), progress }
    }

    pub fn progress(&self) -> &Progress {
        &self.progress
    }

    /// Takes in one line; returns its text if that is worth keeping.
    pub fn line(&mut self, line: &str) -> Option<String> {
        // Programs that Nix runs may write past its log.
        let Some(json) = line.strip_prefix(MARK) else { return Some(line.to_owned()) };
        let line: Line = serde_json::from_str(json).ok()?;
        match line.action.as_str() {
            "msg" => Some(line.msg),
            "start" => {
                self.start(&line);
                None
            }
            "stop" => {
                self.stop(line.id);
                None
            }
            "result" => self.result(&line),
            _ => None,
        }
    }

    fn start(&mut self, line: &Line) {
        if self.activities.len() >= MAX_ACTIVITIES {
            return;
        }
        let known = [COPY_PATH, FILE_TRANSFER, COPY_PATHS, BUILDS, BUILD, SUBSTITUTE];
        if !known.contains(&line.kind) {
            return;
        }
        let path = line.fields.first().and_then(|field| field.as_str());
        let builds = path.filter(|_| line.kind == BUILD).map(name);
        if let (COPY_PATH | BUILD | SUBSTITUTE, Some(path)) = (line.kind, path) {
            self.progress.current = Some(name(path));
        }
        self.activities.insert(line.id, Activity { kind: line.kind, builds, ..Activity::default() });
    }

    /// Transferred bytes stay counted.
    fn stop(&mut self, id: u64) {
        let Some(activity) = self.activities.remove(&id) else { return };
        if activity.kind == FILE_TRANSFER {
            let others = self.progress.bytes_expected.saturating_sub(activity.expected);
            self.progress.bytes_expected = others.saturating_add(activity.bytes);
        }
    }

    fn result(&mut self, line: &Line) -> Option<String> {
        match line.kind {
            BUILD_LOG_LINE | POST_BUILD_LOG_LINE => {
                let text = line.fields.first()?.as_str()?;
                let of = self.activities.get(&line.id).and_then(|activity| activity.builds.as_deref());
                Some(of.map_or_else(|| text.to_owned(), |of| format!("{of}> {text}")))
            }
            PROGRESS => {
                self.advance(line);
                None
            }
            _ => None,
        }
    }

    fn advance(&mut self, line: &Line) {
        let number = |place: usize| line.fields.get(place).and_then(serde_json::Value::as_u64).unwrap_or(0);
        let (done, expected, running) = (number(0), number(1), number(2));
        let Some(activity) = self.activities.get_mut(&line.id) else { return };
        let progress = &mut self.progress;
        match activity.kind {
            BUILDS => (progress.built, progress.to_build, progress.building) = (done, expected, running),
            COPY_PATHS => (progress.copied, progress.to_copy) = (done, expected),
            FILE_TRANSFER => {
                let replace = |all: u64, before, now| all.saturating_sub(before).saturating_add(now);
                progress.bytes = replace(progress.bytes, activity.bytes, done);
                progress.bytes_expected = replace(progress.bytes_expected, activity.expected, expected);
                (activity.bytes, activity.expected) = (done, expected);
            }
            _ => {}
        }
    }
}

/// The name of a store path without its hash.
fn name(path: &str) -> String {
    let base = path.rsplit('/').next().unwrap_or(path);
    let name = base.get(33..).unwrap_or(base);
    name.strip_suffix(".drv").unwrap_or(name).to_owned()
}

/// As text for people.
pub fn describe(progress: &Progress) -> String {
    let mut words = match progress.step {
        UpdateStep::Fetch => "fetching".to_owned(),
        _ => "building".to_owned(),
    };
    if progress.to_build > 0 {
        words.push_str(&format!(", {} of {} built", progress.built, progress.to_build));
    }
    if progress.to_copy > 0 {
        words.push_str(&format!(", {} of {} copied", progress.copied, progress.to_copy));
    }
    if let Some(at) = &progress.current {
        words.push_str(&format!(" (now {at})"));
    }
    words
}

/// Decides when progress is reported: soon at first, then ever more rarely, and only so often in total.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pace {
    events: u32,
    next: Duration,
}

impl Pace {
    /// For a step that begins at `now`, in awake time.
    pub fn new(now: Duration) -> Self {
        Self { events: 0, next: now + FIRST }
    }

    /// Whether to report at `now`; if so, it counts as reported.
    pub fn take(&mut self, now: Duration) -> bool {
        if now < self.next || self.events >= MAX_EVENTS {
            return false;
        }
        let pause = FIRST.saturating_mul(1 << self.events.min(10)).min(LONGEST);
        self.events += 1;
        self.next = now + pause;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Written by Nix 2.8.0 while it built two derivations; some lines left out.
    const BUILD_OF_TWO: &str = r#"@nix {"action":"start","id":1,"level":0,"text":"","type":104}
@nix {"action":"start","id":2,"level":0,"text":"","type":103}
@nix {"action":"result","fields":[0,2,0,0],"id":1,"type":105}
@nix {"action":"result","fields":[101,0],"id":9,"type":106}
@nix {"action":"start","fields":["/nix/store/4rahdmc1fvpbv94zzwliip045z7chms5-dep.drv","",1,1],"id":3,"level":3,"text":"building","type":105}
@nix {"action":"result","fields":[0,2,1,0],"id":1,"type":105}
@nix {"action":"result","fields":["dep"],"id":3,"type":101}
@nix {"action":"stop","id":3}
@nix {"action":"result","fields":[1,2,0,0],"id":1,"type":105}
@nix {"action":"msg","level":1,"msg":"warning: it rains"}"#;

    #[test]
    fn a_build_is_followed_and_its_words_are_kept() {
        let mut tracker = Tracker::new(UpdateStep::Build);
        let kept: Vec<String> = BUILD_OF_TWO.lines().filter_map(|line| tracker.line(line)).collect();
        assert_eq!(kept, ["dep> dep", "warning: it rains"]);
        let progress = tracker.progress();
        assert_eq!((progress.built, progress.to_build, progress.building), (1, 2, 0));
        assert_eq!(describe(progress), "building, 1 of 2 built (now dep)");
    }

    #[test]
    fn bytes_of_transfers_add_up_and_stay() {
        let mut tracker = Tracker::new(UpdateStep::Fetch);
        let mut say = |text: &str| drop(tracker.line(&format!("@nix {text}")));
        for id in [1, 2] {
            say(&format!(r#"{{"action":"start","id":{id},"type":101,"fields":["http://x/{id}"]}}"#));
            say(&format!(r#"{{"action":"result","id":{id},"type":105,"fields":[10,100,0,0]}}"#));
            say(&format!(r#"{{"action":"result","id":{id},"type":105,"fields":[60,100,0,0]}}"#));
        }
        say(r#"{"action":"stop","id":1}"#);
        assert_eq!((tracker.progress().bytes, tracker.progress().bytes_expected), (120, 160));
    }

    #[test]
    fn failure_mode_11_what_another_nix_says_is_passed_over_and_never_a_reason_to_fail() {
        let mut tracker = Tracker::new(UpdateStep::Build);
        for line in [
            "@nix {",
            "@nix 3",
            r#"@nix {"action":"dance","id":1}"#,
            r#"@nix {"action":"start","id":1,"type":104,"fields":[{"new":"shape"}]}"#,
            r#"@nix {"action":"result","id":1,"type":105,"fields":["many",null]}"#,
            r#"@nix {"action":"result","id":77,"type":105,"fields":[1,2,3,4]}"#,
            r#"@nix {"action":"result","id":1,"type":999,"fields":[]}"#,
            r#"@nix {"action":"stop","id":1234}"#,
            r#"@nix {"action":"result","id":1,"type":101,"fields":[5]}"#,
        ] {
            assert_eq!(tracker.line(line), None, "{line}");
        }
        assert_eq!(tracker.line("plain words").as_deref(), Some("plain words"));
        assert_eq!(tracker.progress().to_build, 0);
    }

    #[test]
    fn activities_without_an_end_take_no_more_room_than_is_meant() {
        let mut tracker = Tracker::new(UpdateStep::Build);
        for id in 0..10_000 {
            let text = r#""type":105,"fields":["/nix/store/4rahdmc1fvpbv94zzwliip045z7chms5-dep.drv"]"#;
            tracker.line(&format!(r#"@nix {{"action":"start","id":{id},{text}}}"#));
        }
        assert_eq!(tracker.activities.len(), MAX_ACTIVITIES);
    }

    #[test]
    fn progress_is_told_ever_more_rarely_and_not_for_ever() {
        let mut pace = Pace::new(Duration::ZERO);
        let reported: Vec<u64> =
            (0..100_000).filter(|second| pace.take(Duration::from_secs(*second))).collect();
        assert_eq!(reported[..6], [5, 10, 20, 40, 80, 160]);
        assert!(reported[7..].windows(2).all(|pair| pair[1] - pair[0] == 300), "{reported:?}");
        assert_eq!(reported.len(), 64);
    }
}
