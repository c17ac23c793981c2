use std::collections::VecDeque;
use std::fmt;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Mutex, Weak};

use proptest::prelude::*;

use super::*;
use crate::cancel::Cancellation;
use crate::message::causes;

/// An error response to a request for a blob.
#[derive(Debug, Clone, Copy)]
struct Refusal {
    is_transient: bool,
    parked_until: Option<Instant>,
}

const BUSY: Refusal = Refusal { is_transient: true, parked_until: None };
const UNKNOWN: Refusal = Refusal { is_transient: false, parked_until: None };

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.is_transient { "the registry is busy" } else { "the registry has no such blob" })
    }
}

impl Error for Refusal {}

impl Retryable for Refusal {
    fn is_transient(&self) -> bool {
        self.is_transient
    }

    fn parked_until(&self) -> Option<Instant> {
        self.parked_until
    }
}

fn parked(seconds: u64) -> Answer {
    Answer::Refuse(Refusal { is_transient: true, parked_until: Some(Instant::now() + Duration::from_secs(seconds)) })
}

/// The end of a response body.
#[derive(Debug, Clone, Copy)]
enum End {
    Clean,
    Reset,
}

/// One response to a request for a blob from an offset on.
#[derive(Debug, Clone, Copy)]
enum Answer {
    Refuse(Refusal),
    /// The requested rest of the blob.
    Rest,
    /// The requested rest, but the connection breaks after this number of bytes.
    Cut(u64, End),
    /// The whole blob, regardless of the offset. The connection may break after this number of bytes.
    FromStart(u64, End),
    /// The rest of the blob from another offset than requested.
    From(u64),
    /// The requested rest, with this as its stated length.
    Claim(u64),
    /// The requested rest without a stated length, followed by more bytes.
    Longer(u64),
}

/// A body of the blob's bytes `at..end`.
struct Body {
    blob: Arc<[u8]>,
    at: usize,
    end: usize,
    ending: End,
}

impl Read for Body {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.ending {
            End::Reset if self.at == self.end => Err(io::ErrorKind::ConnectionReset.into()),
            _ => (&self.blob[self.at..self.end]).read(buffer).inspect(|count| self.at += count),
        }
    }
}

fn answer(blob: &Arc<[u8]>, offset: u64, answer: Answer) -> Result<OpenedBlob, Refusal> {
    let size = blob.len() as u64;
    let (start, end, ending) = match answer {
        Answer::Refuse(refusal) => return Err(refusal),
        Answer::Rest | Answer::Claim(_) => (offset, size, End::Clean),
        Answer::Cut(count, ending) => (offset, offset.saturating_add(count).min(size), ending),
        Answer::FromStart(count, ending) => (0, count.min(size), ending),
        Answer::From(start) => (start, size, End::Clean),
        Answer::Longer(_) => (offset, size, End::Clean),
    };
    let length = match answer {
        Answer::Claim(length) => Some(length),
        Answer::Longer(_) => None,
        _ => Some(size - start),
    };
    let body = Body { blob: Arc::clone(blob), at: start as usize, end: end as usize, ending };
    let more = if let Answer::Longer(count) = answer { count } else { 0 };
    Ok(OpenedBlob { start, length, mirror: None, body: Box::new(body.chain(io::repeat(7).take(more))) })
}

/// Record of a download: the requested offsets and the pauses.
#[derive(Debug, Default)]
struct Log {
    offsets: Vec<u64>,
    pauses: Vec<Duration>,
}

/// A runtime in which no time passes, with a fixed random number.
struct NoTime {
    log: Arc<Mutex<Log>>,
    chance: f64,
}

impl Runtime for NoTime {
    fn pause(&mut self, length: Duration) {
        self.log.lock().unwrap().pauses.push(length);
    }

    fn is_wanted(&self) -> bool {
        true
    }

    fn now(&self) -> Instant {
        Instant::now()
    }

    fn chance(&mut self) -> f64 {
        self.chance
    }
}

/// A runtime in which each call of `now` advances the time by a second.
struct Ticking(Mutex<Instant>);

impl Runtime for Ticking {
    fn pause(&mut self, _: Duration) {}

    fn is_wanted(&self) -> bool {
        true
    }

    fn now(&self) -> Instant {
        let mut now = self.0.lock().unwrap();
        *now += Duration::from_secs(1);
        *now
    }

    fn chance(&mut self) -> f64 {
        0.5
    }
}

/// A body that returns a fixed number of bytes per read, and fails after a fixed number of reads.
struct Drops {
    rest: u64,
    at_once: u64,
    reads: u32,
}

impl Read for Drops {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.reads = self.reads.checked_sub(1).ok_or(io::ErrorKind::ConnectionReset)?;
        let count = self.at_once.min(self.rest).min(buffer.len() as u64);
        self.rest -= count;
        Ok(count as usize)
    }
}

/// Reads a blob of 100,000 bytes that arrives slowly. Returns the requested offsets and the result.
fn read_drops(at_once: u64, reads: u32) -> (Vec<u64>, Result<u64, String>) {
    read_answers(move |offset, _| (offset, at_once, reads))
}

/// Reads a blob of 100,000 bytes. `answer` returns for each response its offset, its bytes per read, and the number of reads
/// after which it fails. Returns the requested offsets and the result.
fn read_answers(answer: impl Fn(u64, usize) -> (u64, u64, u32) + Send + 'static) -> (Vec<u64>, Result<u64, String>) {
    let asked = Arc::new(Mutex::new(Vec::new()));
    let noted = Arc::clone(&asked);
    let size = 100_000;
    let open = move |offset| -> Result<OpenedBlob, Refusal> {
        let mut noted = noted.lock().unwrap();
        let (start, at_once, reads) = answer(offset, noted.len());
        noted.push(offset);
        let body = Box::new(Drops { rest: size - start, at_once, reads });
        Ok(OpenedBlob { start, length: Some(size - start), mirror: None, body })
    };
    let policy =
        DownloadPolicy { minimum_rate: 100, rate_window: Duration::from_secs(10), ..DownloadPolicy::default() };
    let runtime = Box::new(Ticking(Mutex::new(Instant::now())));
    let mut attempts = Attempts::new(open, size, policy, runtime, &Reporter::silent());
    let mut buffer = [0; 4096];
    let mut read = 0;
    let result = loop {
        match attempts.read(&mut buffer) {
            Ok(0) => break Ok(read),
            Ok(count) => read += count as u64,
            Err(error) => break Err(causes(&error)),
        }
    };
    let asked = asked.lock().unwrap().clone();
    (asked, result)
}

#[test]
fn slow_blob_is_requested_once_more_before_the_download_fails() {
    let (asked, result) = read_drops(1, u32::MAX);
    let error = result.unwrap_err();
    assert!(error.contains("10 bytes arrived in 10s") && error.contains("minimum_rate"), "{error}");
    assert_eq!(asked, [0, 10]);
}

#[test]
fn connection_that_is_lost_after_each_byte_counts_as_slow() {
    let (asked, result) = read_drops(1, 1);
    assert!(result.unwrap_err().contains("minimum_rate"));
    assert!(asked.len() <= 20, "{asked:?}");
}

#[test]
fn skipped_bytes_count_for_the_rate() {
    let (asked, result) = read_answers(|_, number| if number == 0 { (0, 1000, 40) } else { (0, 1000, u32::MAX) });
    assert_eq!((asked, result), (vec![0, 40_000], Ok(100_000)));
    let (asked, result) = read_answers(|_, number| if number == 0 { (0, 1000, 40) } else { (0, 1, u32::MAX) });
    let error = result.unwrap_err();
    assert!(error.contains("minimum_rate") && asked.len() == 2, "{asked:?}: {error}");
}

#[test]
fn blob_at_the_minimum_rate_is_read_through_one_connection() {
    assert_eq!(read_drops(100, u32::MAX), (vec![0], Ok(100_000)));
}

fn blob(size: usize) -> Arc<[u8]> {
    (0..size).map(|n| (n * 31 + n / 251) as u8).collect()
}

/// Downloads a blob from a registry that sends these responses, and complete ones after them.
fn download(blob: &Arc<[u8]>, answers: &[Answer]) -> (Download, Arc<Mutex<Log>>) {
    let log = Arc::new(Mutex::new(Log::default()));
    let (blob, script, opened) = (Arc::clone(blob), Mutex::new(VecDeque::from(answers.to_vec())), Arc::clone(&log));
    let size = blob.len() as u64;
    let open = move |offset| {
        opened.lock().unwrap().offsets.push(offset);
        let next = script.lock().unwrap().pop_front();
        answer(&blob, offset, next.unwrap_or(Answer::Rest))
    };
    let runtime = Box::new(NoTime { log: Arc::clone(&log), chance: 0.5 });
    let policy = DownloadPolicy::default();
    let pipe = Arc::new(Pipe::new(policy.buffer_limit, policy.ready_threshold, Cancellation::default()));
    (Download::start_in(Attempts::new(open, size, policy, runtime, &Reporter::silent()), pipe), log)
}

/// Asserts that the whole blob arrives, and returns the requested offsets and the pauses in milliseconds.
#[track_caller]
fn whole(blob: &Arc<[u8]>, answers: &[Answer]) -> (Vec<u64>, Vec<u128>) {
    let (mut download, log) = download(blob, answers);
    let mut bytes = Vec::new();
    download.read_to_end(&mut bytes).unwrap_or_else(|error| panic!("{}", causes(&error)));
    assert!(bytes == blob[..], "other bytes arrived");
    let log = log.lock().unwrap();
    (log.offsets.clone(), log.pauses.iter().map(Duration::as_millis).collect())
}

/// Returns the error of a failing download, the number of bytes before it, and the log.
#[track_caller]
fn failing(blob: &Arc<[u8]>, answers: &[Answer]) -> (String, usize, Arc<Mutex<Log>>) {
    let (mut download, log) = download(blob, answers);
    let mut bytes = Vec::new();
    let error = download.read_to_end(&mut bytes).expect_err("the download should fail");
    assert!(blob.starts_with(&bytes), "other bytes arrived");
    (causes(&error), bytes.len(), log)
}

#[test]
fn complete_response_is_requested_once() {
    assert_eq!(whole(&blob(1_000_000), &[]), (vec![0], vec![]));
    assert_eq!(whole(&blob(0), &[]), (vec![0], vec![]));
    assert_eq!(whole(&blob(10), &[Answer::Longer(0)]), (vec![0], vec![]));
}

#[test]
fn download_resumes_where_the_connection_was_lost() {
    for end in [End::Clean, End::Reset] {
        let answers = [Answer::Cut(1000, end), Answer::Cut(1, end)];
        assert_eq!(whole(&blob(5000), &answers), (vec![0, 1000, 1001], vec![1, 1]));
    }
}

#[test]
fn known_bytes_are_skipped_in_a_response_without_range() {
    let answers = [Answer::Cut(1000, End::Reset), Answer::FromStart(u64::MAX, End::Clean)];
    assert_eq!(whole(&blob(700_000), &answers).0, [0, 1000]);
}

#[test]
fn skipped_bytes_are_no_progress() {
    let answers: Vec<Answer> = [Answer::Cut(1000, End::Reset)]
        .into_iter()
        .chain(std::iter::repeat_n(Answer::FromStart(900, End::Reset), 8))
        .collect();
    let (message, count, _) = failing(&blob(5000), &answers);
    assert!(message.contains("after 1000 of 5000 bytes, and 8 attempts in a row failed: "), "{message}");
    assert_eq!(count, 1000);
}

#[test]
fn response_from_another_offset_is_an_error() {
    for (offset, start) in [(0, 1), (1000, 999), (1000, 1001)] {
        let (message, count, log) =
            failing(&blob(5000), &[Answer::Cut(offset, End::Reset), Answer::From(start)][offset.min(1) as usize ^ 1..]);
        assert!(message.contains(&format!("starts at byte {start}, but byte {offset} was requested")), "{message}");
        assert_eq!((count as u64, log.lock().unwrap().pauses.len() as u64), (offset, offset.min(1)));
    }
}

#[test]
fn length_that_contradicts_the_manifest_is_an_error_before_any_byte() {
    for (length, actual) in [(4999, 4999), (5001, 5001_u128), (u64::MAX, u64::MAX.into())] {
        let (message, count, log) = failing(&blob(5000), &[Answer::Claim(length)]);
        assert!(message.contains(&format!("blob is {actual} bytes long, but the manifest states 5000")), "{message}");
        assert_eq!((count, log.lock().unwrap().pauses.len()), (0, 0));
    }
    let (message, ..) = failing(&blob(5000), &[Answer::Cut(1000, End::Reset), Answer::Claim(u64::MAX)]);
    assert!(message.contains(&format!("blob is {} bytes long", u128::from(u64::MAX) + 1000)), "{message}");
}

#[test]
fn excess_byte_is_an_error_after_the_others() {
    let (message, count, _) = failing(&blob(5000), &[Answer::Longer(1)]);
    assert!(message.contains("longer than the 5000 bytes"), "{message}");
    assert_eq!(count, 5000);
}

#[test]
fn connection_error_after_the_last_byte_is_ignored() {
    assert_eq!(whole(&blob(5000), &[Answer::Cut(5000, End::Reset)]), (vec![0], vec![]));
}

#[test]
fn pauses_double_up_to_the_maximum_and_the_download_fails_after_eight_attempts() {
    let (message, count, log) = failing(&blob(5000), &[Answer::Refuse(BUSY); 9]);
    assert_eq!(
        message,
        "the download stopped after 0 of 5000 bytes, and 8 attempts in a row failed: the registry is busy"
    );
    let log = log.lock().unwrap();
    assert_eq!(count, 0);
    assert_eq!(log.offsets, [0; 8]);
    assert_eq!(log.pauses, [500, 1000, 2000, 4000, 8000, 16_000, 30_000].map(Duration::from_millis));
}

#[test]
fn one_byte_resets_the_number_of_failures() {
    let busy = [Answer::Refuse(BUSY); 7];
    let answers = [&busy[..], &[Answer::Cut(1, End::Reset)], &busy].concat();
    let (offsets, pauses) = whole(&blob(5000), &answers);
    assert_eq!(offsets, [&[0; 8][..], &[1; 8]].concat());
    let one_run = [500, 1000, 2000, 4000, 8000, 16_000, 30_000];
    assert_eq!(pauses, [&one_run[..], &[1], &one_run].concat());
}

#[test]
fn pause_varies_by_up_to_a_quarter() {
    for (chance, milliseconds) in [(0.0, 375), (1.0, 625)] {
        let log = Arc::new(Mutex::new(Log::default()));
        let runtime = Box::new(NoTime { log: Arc::clone(&log), chance });
        let mut attempts = Attempts::new(
            |_| Err(BUSY),
            1,
            DownloadPolicy { attempts: 2, ..DownloadPolicy::default() },
            runtime,
            &Reporter::silent(),
        );
        assert!(attempts.read(&mut [0]).is_err());
        assert_eq!(log.lock().unwrap().pauses, [Duration::from_millis(milliseconds)]);
    }
}

#[test]
fn permanent_error_ends_the_download_at_once() {
    let (mut download, log) = download(&blob(5000), &[Answer::Cut(10, End::Reset), Answer::Refuse(UNKNOWN)]);
    let error = download.read_to_end(&mut Vec::new()).unwrap_err();
    assert_eq!(causes(&error), "the download stopped after 10 of 5000 bytes: the registry has no such blob");
    assert!(error.source().unwrap().is::<Refusal>());
    assert_eq!(log.lock().unwrap().offsets, [0, 10]);
    assert!(download.read(&mut [0]).is_err(), "an error does not turn into an end");
}

#[test]
fn waiting_for_a_parked_registry_is_no_failed_attempt() {
    let answers = [parked(30); 20];
    let (offsets, pauses) = whole(&blob(10), &answers[..19]);
    assert_eq!(offsets.len(), 20);
    assert!(pauses.iter().all(|pause| (29_000..=30_000).contains(pause)), "{pauses:?}");
}

#[test]
fn waiting_for_a_parked_registry_has_a_limit() {
    let (message, _, log) = failing(&blob(10), &[parked(300), parked(299), parked(300)]);
    assert!(message.ends_with("of 10 bytes: the registry is busy"), "{message}");
    assert_eq!(log.lock().unwrap().pauses.len(), 2);
    let (_, _, log) = failing(&blob(10), &[parked(3000)]);
    assert_eq!(log.lock().unwrap().pauses, []);
    let past = Refusal { is_transient: true, parked_until: Some(Instant::now()) };
    assert_eq!(whole(&blob(10), &[Answer::Refuse(past)]).1, [1000], "the pause has a minimum length");
}

#[test]
fn error_of_the_operating_system_is_the_cause() {
    let answers = vec![Answer::Cut(0, End::Reset); 8];
    let (mut download, _) = download(&blob(10), &answers);
    let error = download.read(&mut [0; 10]).unwrap_err();
    let cause = error.source().unwrap().downcast_ref::<io::Error>();
    assert_eq!(cause.map(io::Error::kind), Some(io::ErrorKind::ConnectionReset));
}

#[test]
fn panic_of_the_thread_is_an_error() {
    let open = |_| -> Result<OpenedBlob, Refusal> { panic!("this message is expected") };
    let error = Download::start(open, 10, DownloadPolicy::default(), &Reporter::silent(), Cancellation::default())
        .read(&mut [0])
        .unwrap_err();
    assert!(error.to_string().contains("stopped before its end"), "{error}");
}

#[test]
fn without_a_thread_the_reader_downloads() {
    let blob = blob(100_000);
    let log = Arc::new(Mutex::new(Log::default()));
    let served = Arc::clone(&blob);
    let open = move |offset| answer(&served, offset, Answer::Cut(30_000, End::Reset));
    let runtime = Box::new(NoTime { log, chance: 0.5 });
    let attempts = Attempts::new(open, 100_000, DownloadPolicy::default(), runtime, &Reporter::silent());
    let mut download = Download { pipe: Arc::new(Pipe::new(0, 0, Cancellation::default())), direct: Some(attempts) };
    assert!(download.readiness().is_ready());
    let mut bytes = Vec::new();
    download.read_to_end(&mut bytes).unwrap();
    assert!(bytes == blob[..]);
}

/// A body that returns the buffers that the test sends.
struct Fed(Receiver<Vec<u8>>);

impl Read for Fed {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let bytes = self.0.recv().map_err(|_| io::ErrorKind::TimedOut)?;
        buffer[..bytes.len()].copy_from_slice(&bytes);
        Ok(bytes.len())
    }
}

fn fed(size: u64, policy: DownloadPolicy) -> (Download, Sender<Vec<u8>>) {
    let (feed, fed) = channel();
    let mut body = Some(Box::new(Fed(fed)));
    let open = move |start| match body.take() {
        Some(body) => Ok(OpenedBlob { start, length: None, mirror: None, body }),
        None => Err(UNKNOWN),
    };
    (Download::start(open, size, policy, &Reporter::silent(), Cancellation::default()), feed)
}

#[track_caller]
fn wait_until(mut is_so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < Duration::from_secs(20), "not within 20 s");
        thread::yield_now();
    }
}

#[test]
fn download_is_ready_from_the_threshold_on() {
    let (mut download, feed) = fed(1 << 20, DownloadPolicy { ready_threshold: 3000, ..DownloadPolicy::default() });
    let readiness = download.readiness();
    assert!(!readiness.is_ready());
    feed.send(vec![1; 2999]).unwrap();
    wait_until(|| download.pipe.len() == 2999);
    assert!(!readiness.is_ready());
    feed.send(vec![1; 1]).unwrap();
    wait_until(|| readiness.is_ready());
    assert_eq!(download.read(&mut [0; 1000]).unwrap(), 1000);
    assert!(!readiness.is_ready());
    drop(feed);
    wait_until(|| readiness.is_ready());
    assert_eq!(io::copy(&mut (&mut download).take(2000), &mut io::sink()).unwrap(), 2000);
    assert!(readiness.is_ready() && download.read(&mut [0]).is_err());
}

#[test]
fn download_is_ready_at_its_end() {
    let (mut download, feed) = fed(3, DownloadPolicy::default());
    feed.send(vec![1; 3]).unwrap();
    drop(feed);
    wait_until(|| download.readiness().is_ready());
    assert_eq!(io::copy(&mut download, &mut io::sink()).unwrap(), 3);
    assert!(download.readiness().is_ready());
}

#[test]
fn number_of_buffered_bytes_is_limited() {
    let policy =
        DownloadPolicy { buffer_limit: 4 * READ_SIZE, ready_threshold: 4 * READ_SIZE, ..DownloadPolicy::default() };
    let (mut download, feed) = fed(100 * READ_SIZE as u64, policy);
    (0..100).for_each(|_| feed.send(vec![1; READ_SIZE]).unwrap());
    wait_until(|| download.readiness().is_ready() && download.pipe.len() == 3 * READ_SIZE);
    thread::park_timeout(Duration::from_millis(20));
    assert_eq!(download.pipe.len(), 3 * READ_SIZE);
    drop(feed);
    assert_eq!(io::copy(&mut download, &mut io::sink()).unwrap(), 100 * READ_SIZE as u64);
}

#[test]
fn dropped_download_ends_its_thread_while_it_waits_for_an_attempt() {
    let alive = Arc::new(());
    let (still, opened) = (Arc::downgrade(&alive), channel());
    let open = move |_| {
        let _kept = &alive;
        opened.0.send(()).unwrap();
        Err::<OpenedBlob, _>(BUSY)
    };
    let hour = Duration::from_secs(3600);
    let download = Download::start(
        open,
        10,
        DownloadPolicy { first_pause: hour, max_pause: hour, ..DownloadPolicy::default() },
        &Reporter::silent(),
        Cancellation::default(),
    );
    opened.1.recv().unwrap();
    drop(download);
    wait_until(|| Weak::strong_count(&still) == 0);
}

#[test]
fn dropped_download_ends_its_thread_while_it_waits_for_room() {
    let (download, feed) = fed(1 << 40, DownloadPolicy { buffer_limit: 2 * READ_SIZE, ..DownloadPolicy::default() });
    (0..10).for_each(|_| feed.send(vec![1; READ_SIZE]).unwrap());
    wait_until(|| download.pipe.len() == READ_SIZE);
    drop(download);
    wait_until(|| feed.send(vec![1]).is_err());
}

#[test]
fn drop_does_not_wait_for_the_body() {
    let (download, feed) = fed(10, DownloadPolicy::default());
    drop(download);
    feed.send(vec![1]).unwrap();
    wait_until(|| feed.send(vec![1]).is_err());
}

#[test]
#[ignore = "measures, for a person to read"]
fn speed() {
    struct Zeros;
    impl Read for Zeros {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            Ok(buffer.len())
        }
    }
    let size = 16 << 30;
    let open = move |start| {
        Ok::<_, Refusal>(OpenedBlob { start, length: None, mirror: None, body: Box::new(Zeros.take(size - start)) })
    };
    let mut download =
        Download::start(open, size, DownloadPolicy::default(), &Reporter::silent(), Cancellation::default());
    let (mut buffer, mut count, start) = (vec![0; READ_SIZE], 0, Instant::now());
    while count < size {
        count += download.read(&mut buffer).unwrap() as u64;
    }
    println!("{:.2} GB/s", size as f64 / start.elapsed().as_secs_f64() / 1e9);
}

fn any_answer() -> impl Strategy<Value = Answer> {
    let ending = || prop_oneof![Just(End::Clean), Just(End::Reset)];
    prop_oneof![
        (0..4000_u64, ending()).prop_map(|(count, end)| Answer::Cut(count, end)),
        (0..9000_u64, ending()).prop_map(|(count, end)| Answer::FromStart(count, end)),
        Just(Answer::Longer(0)),
        Just(Answer::Refuse(BUSY)),
        Just(parked(1)),
    ]
}

proptest! {
    #[test]
    fn bytes_are_the_same_after_any_connection_errors(
        size in 0..20_000_usize,
        answers in prop::collection::vec(any_answer(), 0..7),
    ) {
        let (offsets, _) = whole(&blob(size), &answers);
        prop_assert!(offsets.is_sorted(), "{offsets:?}");
    }
}
