//! Publishing what was signed.

use anyhow::{Result, anyhow};
use muster_protocol::api::{OPERATOR_DRAFTS, OPERATOR_GENERATIONS, ProblemCode, operator_machine};
use muster_protocol::draft::{Draft, Drafted};
use muster_protocol::ids::Sha256;
use muster_protocol::operator::{
    MAX_PUBLICATIONS_BYTES, MachinePublication, MachineView, PUBLISHED_TOGETHER, Publication, Publications,
    PublicationsTaken,
};
use muster_protocol::target::Target;

use super::drafts::is;
use super::highest::{HighestSigned, Seen};
use crate::api::client::{Api, Refused};
use crate::config::Config;
use crate::terminal::count::count;
use crate::terminal::error::WithHint as _;
use crate::trust::change;
use crate::trust::roots::Trusted;
use crate::trust::understands;

/// Room in a request for what is around a generation's texts.
const FRAME_BYTES: usize = 512;

/// Publishes generations, in requests one after the other: the controller publishes all generations of a
/// request, or none. What was published before a request is refused stays published; publishing all of them
/// again goes on with the rest, since what is published already is left as it is.
pub async fn generations(api: &Api, all: &[MachinePublication]) -> Result<()> {
    let mut done = 0;
    for batch in requests(all) {
        match batch {
            [one] => generation(api, one, (done, all.len())).await?,
            many => together(api, many, (done, all.len())).await?,
        }
        done += batch.len();
    }
    Ok(())
}

/// Publishes one machine's generation: `done` of `all` were published before it.
async fn generation(
    api: &Api,
    MachinePublication { machine, publication }: &MachinePublication,
    (done, all): (usize, usize),
) -> Result<()> {
    let path = format!("{}/generations", operator_machine(machine));
    let published: Result<MachineView> = api.post(&path, publication).await;
    published.map(drop).map_err(|error| {
        let what = format!("generation {} for {machine}", publication.generation);
        let said = match is_refusal(&error) {
            true => format!("{what} was not published"),
            false => format!("it is not known whether {what} was published"),
        };
        error.context(format!("{said} ({done} of {all} were, before it)"))
    })
}

async fn together(api: &Api, some: &[MachinePublication], (done, all): (usize, usize)) -> Result<()> {
    let taken: Result<PublicationsTaken> =
        api.post(OPERATOR_GENERATIONS, &Publications { generations: some.to_vec() }).await;
    match taken {
        Err(error) if is_of_older_version(&error) => {
            for (more, one) in some.iter().enumerate() {
                generation(api, one, (done + more, all)).await?;
            }
            Ok(())
        }
        Err(error) => {
            let said = match (done, is_refusal(&error)) {
                (0, true) => format!("nothing was published of {all} generations"),
                (_, true) => format!("{done} of {all} generations were published, and nothing of the rest"),
                (_, false) => format!(
                    "{done} of {all} generations were published; of the next {} it is not known",
                    some.len()
                ),
            };
            Err(error.context(said))
        }
        Ok(_) => Ok(()),
    }
}

/// Whether nothing of the request was published for certain. An answer that was lost may have been a good
/// one.
fn is_refusal(error: &anyhow::Error) -> bool {
    let refused = error.downcast_ref::<Refused>();
    refused.is_some_and(|refused| matches!(refused.status.as_u16(), 400..=499 | 507))
}

/// Whether the controller takes generations only one by one, as version 0.1 does.
fn is_of_older_version(error: &anyhow::Error) -> bool {
    error.downcast_ref::<Refused>().is_some_and(|refused| matches!(refused.status.as_u16(), 404 | 405))
}

/// The generations in parts that fit in a request each.
fn requests(all: &[MachinePublication]) -> Vec<&[MachinePublication]> {
    let (mut parts, mut begin, mut bytes) = (Vec::new(), 0, FRAME_BYTES);
    for (place, one) in all.iter().enumerate() {
        let size = written(one);
        let full = bytes + size > MAX_PUBLICATIONS_BYTES || place - begin == PUBLISHED_TOGETHER;
        if full && place > begin {
            parts.push(&all[begin..place]);
            (begin, bytes) = (place, FRAME_BYTES);
        }
        bytes += size;
    }
    if begin < all.len() {
        parts.push(&all[begin..]);
    }
    parts
}

/// How many bytes of JSON a generation takes.
fn written(MachinePublication { machine, publication }: &MachinePublication) -> usize {
    let Publication { targets, snapshot, target, .. } = publication;
    let escaped = |byte: u8| match byte {
        b'"' | b'\\' => 2,
        0..0x20 => 6,
        _ => 1,
    };
    let texts = [targets, snapshot, target];
    texts.iter().flat_map(|text| text.bytes()).map(escaped).sum::<usize>()
        + machine.as_str().len()
        + FRAME_BYTES
}

/// Publishes a draft with enough signatures, and ends it.
pub async fn draft(api: &Api, config: &Config, trusted: &mut Trusted, draft: &Draft) -> Result<()> {
    let missing = draft.progress(&trusted.root)?.missing;
    if missing > 0 {
        return Err(anyhow!(
            "draft {} wants {} more",
            draft.id()?.short(),
            count(missing, "signature", "signatures")
        ))
        .hint(format!("another holder runs `muster sign {}`", draft.id()?.short()));
    }
    match &draft.what {
        Drafted::Root { root } => change::publish(api, config, trusted, root.clone()).await?,
        Drafted::Generations { generations } => {
            // Enough operators have signed these numbers, so they count as seen.
            HighestSigned::load(config)?
                .keep(generations.iter().map(|one| (one.machine.clone(), one.publication.generation)));
            let all: Vec<MachinePublication> = generations
                .iter()
                .map(|one| MachinePublication {
                    machine: one.machine.clone(),
                    publication: one.publication.clone(),
                })
                .collect();
            understands::require_generations(api, config, trusted, &all).await?;
            let published = self::generations(api, &all).await;
            let passed = published
                .as_ref()
                .is_err_and(|error| is(error, &[ProblemCode::Conflict, ProblemCode::Sequence]));
            let hint = match passed {
                true => {
                    "see with `muster history MACHINE` what was published already; have a new draft made with \
                         `muster update` for the machines that are left, and drop this one"
                        .to_owned()
                }
                false => format!("repeat with `muster drafts publish {}`", draft.id()?.short()),
            };
            published.hint(hint)?;
            let seen = generations.iter().filter_map(|one| {
                let target = Target::parse(one.publication.target.as_bytes()).ok()?;
                Some((one.machine.clone(), Seen::of(&target)))
            });
            HighestSigned::load(config)?.keep_published(seen);
            for MachinePublication { machine, publication } in &all {
                say!("published generation {} for {machine}", publication.generation);
            }
        }
    }
    let dropped: Result<Sha256> = api.post(&format!("{OPERATOR_DRAFTS}/{}/drop", draft.id()?), &()).await;
    match dropped {
        // It may never have been on the controller: a file is enough.
        Err(error)
            if error.downcast_ref::<Refused>().is_none_or(|refused| refused.status.as_u16() != 404) =>
        {
            Err(error)
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use axum::extract::Request;
    use axum::http::StatusCode;
    use axum::response::{IntoResponse as _, Response};
    use muster_protocol::ids::Generation;

    use super::*;
    use crate::api::client::tests::served;

    fn of_size(bytes: usize) -> MachinePublication {
        let publication = Publication {
            generation: Generation::FIRST,
            targets: "\"\\\n".into(),
            snapshot: "{}".into(),
            target: "x".repeat(bytes),
        };
        MachinePublication { machine: "cinnabar".parse().unwrap(), publication }
    }

    #[test]
    fn what_is_published_is_divided_into_requests_that_the_controller_accepts() {
        let sizes =
            |all: &[MachinePublication]| requests(all).iter().map(|part| part.len()).collect::<Vec<_>>();
        assert_eq!(sizes(&[]), Vec::<usize>::new());
        let small = vec![of_size(1); 2 * PUBLISHED_TOGETHER + 1];
        assert_eq!(sizes(&small), [PUBLISHED_TOGETHER, PUBLISHED_TOGETHER, 1]);
        let large = vec![of_size(MAX_PUBLICATIONS_BYTES / 5); 9];
        assert_eq!(sizes(&large), [4, 4, 1]);
        for part in requests(&large) {
            let body = serde_json::to_vec(&Publications { generations: part.to_vec() }).unwrap();
            assert!(body.len() <= MAX_PUBLICATIONS_BYTES, "{}", body.len());
        }
        // One that is too large is sent alone, and the controller says so.
        assert_eq!(sizes(&[of_size(1), of_size(MAX_PUBLICATIONS_BYTES), of_size(1)]), [1, 1, 1]);
    }

    /// What version 0.1.0 answers where it has nothing.
    const NOTHING_THERE: &str = r#"{"code":"not-found","message":"there is nothing at this address: see that the controller and this program are of one version"}"#;
    /// What any version answers to the publication of one generation.
    const PUBLISHED: &str = r#"{"machine":"tin","class":"nixos","system":"x86_64-linux","tags":[],
        "standing":"enrolled","condition":"updating","clone_alarm":false,
        "holds":{"root":1,"timestamp":1,"snapshot":1,"targets":1}}"#;

    /// An API, and the paths that were asked of it.
    async fn recorded(
        answer: impl Fn(&str) -> Response + Send + Sync + 'static,
    ) -> (Api, Arc<Mutex<Vec<String>>>) {
        let paths = Arc::new(Mutex::new(Vec::new()));
        let asked = Arc::clone(&paths);
        let api = served(move |request: &Request| {
            let path = request.uri().path();
            asked.lock().unwrap().push(format!("{} {path}", request.method()));
            answer(path)
        });
        (api.await, paths)
    }

    fn of(machine: &str) -> MachinePublication {
        MachinePublication { machine: machine.parse().unwrap(), ..of_size(1) }
    }

    #[tokio::test]
    async fn a_controller_without_the_batch_gets_one_generation_after_the_other() {
        let (api, paths) = recorded(|path| match path {
            OPERATOR_GENERATIONS => (StatusCode::NOT_FOUND, NOTHING_THERE).into_response(),
            _ => PUBLISHED.into_response(),
        })
        .await;
        generations(&api, &["tin", "lead", "zinc"].map(of)).await.unwrap();
        let alone = |machine| format!("POST /v1/operator/machines/{machine}/generations");
        let wanted = ["POST /v1/operator/generations".to_owned(), alone("tin"), alone("lead"), alone("zinc")];
        assert_eq!(*paths.lock().unwrap(), wanted);
    }

    #[tokio::test]
    async fn whoever_stops_there_says_how_many_were_published_and_which_was_not() {
        const PASSED: &str = r#"{"code":"sequence","message":"generation 3 is published already"}"#;
        let (api, paths) = recorded(|path| match path {
            OPERATOR_GENERATIONS => (StatusCode::NOT_FOUND, NOTHING_THERE).into_response(),
            path if path.contains("/lead/") => (StatusCode::CONFLICT, PASSED).into_response(),
            _ => PUBLISHED.into_response(),
        })
        .await;
        let error = generations(&api, &["tin", "lead", "zinc"].map(of)).await.unwrap_err();
        let said = format!("{error:#}");
        assert!(
            said.starts_with("generation 1 for lead was not published (1 of 3 were, before it)"),
            "{said}"
        );
        assert!(said.ends_with("generation 3 is published already"), "{said}");
        assert_eq!(paths.lock().unwrap().len(), 3, "nothing is published after it");
    }

    #[tokio::test]
    async fn what_was_published_before_a_request_is_refused_is_counted_and_nothing_is_sent_after_it() {
        const PASSED: &str = r#"{"code":"conflict","message":"none of them: repeat `muster update`"}"#;
        let requests = Mutex::new(0);
        let (api, paths) = recorded(move |_| {
            let mut requests = requests.lock().unwrap();
            *requests += 1;
            match *requests {
                2 => (StatusCode::CONFLICT, PASSED).into_response(),
                _ => format!(r#"{{"published":{PUBLISHED_TOGETHER},"unchanged":0}}"#).into_response(),
            }
        })
        .await;
        let all = vec![of_size(1); 2 * PUBLISHED_TOGETHER + 1];
        let error = generations(&api, &all).await.unwrap_err();
        let said = format!("{error:#}");
        let (done, all) = (PUBLISHED_TOGETHER, all.len());
        let wanted = format!("{done} of {all} generations were published, and nothing of the rest: ");
        assert!(said.starts_with(&wanted), "{said}");
        assert_eq!(paths.lock().unwrap().len(), 2, "nothing is published after it");
    }

    #[tokio::test]
    async fn a_batch_that_is_refused_is_not_tried_one_by_one() {
        for (status, code) in [(409, "conflict"), (422, "bad-signature"), (507, "storage-full")] {
            let (api, paths) = recorded(move |_| {
                let problem = format!(r#"{{"code":"{code}","message":"its own words"}}"#);
                (StatusCode::from_u16(status).unwrap(), problem).into_response()
            })
            .await;
            let error = generations(&api, &["tin", "lead"].map(of)).await.unwrap_err();
            assert_eq!(format!("{error:#}"), "nothing was published of 2 generations: its own words");
            assert_eq!(paths.lock().unwrap().len(), 1, "{status}");
        }
        // Nor does an answer of something else than a controller say anything of its version, or of what was
        // published.
        let (api, _) = recorded(|_| (StatusCode::BAD_GATEWAY, "<html>").into_response()).await;
        let error = generations(&api, &["tin", "lead"].map(of)).await.unwrap_err();
        let said = format!("{error:#}");
        let unknown = "0 of 2 generations were published; of the next 2 it is not known: ";
        assert!(said.starts_with(unknown), "{said}");
        let (api, paths) = recorded(|_| (StatusCode::NOT_FOUND, "<html>").into_response()).await;
        assert!(generations(&api, &["tin", "lead"].map(of)).await.is_err());
        assert_eq!(paths.lock().unwrap().len(), 1);
    }
}
