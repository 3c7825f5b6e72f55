//! The loads: users of a tunnel, on one thread, and what they saw within a window of time.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::Result;
use crate::target::{BULK, IDS};
use crate::usage::{Sample, Watched};
use crate::way::Way;

const GIB: f64 = (1_u64 << 30) as f64;
/// How long a stream may take to open, or an echo to come.
const PATIENCE: Duration = Duration::from_secs(15);
/// Bytes of a request and of its answer.
const REQUEST: usize = 64;
/// Bytes of an HTTP response's body.
const BODY: usize = 1_024;
/// Bytes of a datagram, and datagrams under way for each user.
const DATAGRAM: usize = 512;
const UNDER_WAY: u64 = 8;

/// What users do.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Load {
    /// So many endless streams each way.
    Bulk { down: usize, up: usize },
    /// So many users who each send 64 bytes and wait for them, beside readers of bulk.
    Requests { users: usize, beside: Option<(usize, Readers)> },
    /// So many users who each connect, see one byte echoed and leave.
    Connections { users: usize },
    /// So many streams that are opened and left alone.
    Idle { streams: usize },
    /// So many users who ask for 1 KiB again and again over one connection.
    Http { users: usize },
    /// So many users with eight datagrams under way.
    Datagrams { users: usize },
}

/// How fast readers of bulk are.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Readers {
    /// As fast as it goes.
    Fast,
    /// So many bytes a second each.
    Slow(f64),
    /// They read the first bytes and then nothing.
    Stopped,
}

/// What a load saw, by name.
#[derive(Clone, Debug, Default)]
pub(crate) struct Figures {
    pub(crate) values: BTreeMap<&'static str, f64>,
    pub(crate) failed: usize,
    pub(crate) failure: Option<String>,
}

/// Where a load goes, and how long it is watched.
#[derive(Clone, Debug)]
pub(crate) struct Field {
    pub(crate) way: Way,
    pub(crate) target: SocketAddr,
    pub(crate) watched: Watched,
    pub(crate) warm: Duration,
    pub(crate) window: Duration,
}

/// What all users of a load write into.
#[derive(Default)]
struct Book {
    measuring: AtomicBool,
    over: AtomicBool,
    ready: AtomicUsize,
    failed: AtomicUsize,
    lost: AtomicU64,
    sent: AtomicU64,
    failure: Mutex<Option<String>>,
    /// Microseconds that operations took.
    times: Mutex<Vec<f64>>,
    /// Bytes by stream.
    bytes: Vec<AtomicU64>,
}

impl Book {
    fn new(streams: usize) -> Arc<Self> {
        Arc::new(Self { bytes: (0..streams).map(|_| AtomicU64::new(0)).collect(), ..Self::default() })
    }

    fn is_measuring(&self) -> bool {
        self.measuring.load(Ordering::Relaxed)
    }

    fn took(&self, started: Instant) {
        if self.is_measuring() {
            let micros = started.elapsed().as_secs_f64() * 1e6;
            self.times.lock().unwrap_or_else(PoisonError::into_inner).push(micros);
        }
    }

    fn is_ready(&self) {
        self.ready.fetch_add(1, Ordering::Relaxed);
    }

    fn failed(&self, error: &io::Error) {
        if !self.over.load(Ordering::Relaxed) {
            self.failed.fetch_add(1, Ordering::Relaxed);
            self.failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error.to_string());
        }
    }

    async fn all_ready(&self, count: usize) {
        let asked = Instant::now();
        while self.ready.load(Ordering::Relaxed) + self.failed.load(Ordering::Relaxed) < count
            && asked.elapsed() < 2 * PATIENCE
        {
            sleep(Duration::from_millis(2)).await;
        }
    }

    fn counts(&self) -> Vec<u64> {
        self.bytes.iter().map(|bytes| bytes.load(Ordering::Relaxed)).collect()
    }

    fn close(&self, figures: &mut Figures) {
        self.over.store(true, Ordering::Relaxed);
        figures.failed += self.failed.load(Ordering::Relaxed);
        let failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner).take();
        figures.failure = figures.failure.take().or(failure);
    }

    /// Rate and times of the operations.
    fn operations(&self, window: &Window, figures: &mut Figures) {
        let mut times = std::mem::take(&mut *self.times.lock().unwrap_or_else(PoisonError::into_inner));
        times.sort_unstable_by(f64::total_cmp);
        #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
        let count = times.len() as f64;
        figures.values.insert("ops_s", count / window.seconds);
        for (name, part) in [("p50_us", 0.5), ("p99_us", 0.99), ("p999_us", 0.999)] {
            figures.values.insert(name, quantile(&times, part));
        }
        if count > 0.0 {
            figures.values.insert("cpu_ms_per_1k", window.cpu() * 1e6 / count);
        }
    }
}

/// The value below which so large a part of `sorted` lies; 0 for none.
#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "an index"
)]
pub(crate) fn quantile(sorted: &[f64], part: f64) -> f64 {
    let at = (sorted.len() as f64 * part) as usize;
    sorted.get(at.min(sorted.len().saturating_sub(1))).copied().unwrap_or(0.0)
}

/// What was used while a load was watched.
struct Window {
    before: Sample,
    after: Sample,
    seconds: f64,
}

impl Window {
    fn cpu(&self) -> f64 {
        self.after.cpu_since(&self.before)
    }
}

impl Field {
    /// Puts `load` on, watches it, and takes it off.
    pub(crate) async fn run(&self, load: Load) -> Result<Figures> {
        match load {
            Load::Bulk { down, up } => self.bulk(down, up).await,
            Load::Requests { users, beside } => self.requests(users, beside).await,
            Load::Connections { users } => self.connections(users).await,
            Load::Idle { streams } => self.idle(streams).await,
            Load::Http { users } => self.http(users).await,
            Load::Datagrams { users } => self.datagrams(users).await,
        }
    }

    async fn watch(&self, book: &Book) -> Window {
        sleep(self.warm).await;
        self.watch_now(book).await
    }

    async fn watch_now(&self, book: &Book) -> Window {
        let before = self.watched.sample();
        let started = Instant::now();
        book.measuring.store(true, Ordering::Relaxed);
        sleep(self.window).await;
        book.measuring.store(false, Ordering::Relaxed);
        let seconds = started.elapsed().as_secs_f64();
        Window { before, after: self.watched.sample(), seconds }
    }

    fn close(window: &Window, books: &[&Book]) -> Figures {
        let mut figures = Figures::default();
        books.iter().for_each(|book| book.close(&mut figures));
        figures.values.insert("cpu_s", window.cpu());
        figures.values.insert("foreign_s", window.after.foreign_since(&window.before));
        figures
    }

    // === bulk ===

    async fn bulk(&self, down: usize, up: usize) -> Result<Figures> {
        let book = Book::new(down);
        let first = ids(up as u64);
        let mut users = JoinSet::new();
        for stream in 0..down {
            self.read(&mut users, &book, stream, Readers::Fast);
        }
        for stream in 0..up as u64 {
            self.write(&mut users, &book, first + stream);
        }
        book.all_ready(down + up).await;
        sleep(self.warm).await;
        let counts = async || -> Result<Vec<u64>> {
            let mut counts = book.counts();
            counts.extend(self.swallowed(first, up as u64).await?);
            Ok(counts)
        };
        let before = counts().await?;
        let window = self.watch_now(&book).await;
        let after = counts().await?;
        let mut figures = Self::close(&window, &[&book]);
        let gib = carried(&before, &after, &window, &mut figures);
        figures.values.insert("cpu_s_per_gib", window.cpu() / gib);
        Ok(figures)
    }

    fn read(&self, users: &mut JoinSet<()>, book: &Arc<Book>, stream: usize, readers: Readers) {
        let (field, book) = (self.clone(), book.clone());
        users.spawn(async move {
            if let Err(error) = field.read_one(&book, stream, readers).await {
                book.failed(&error);
            }
        });
    }

    async fn read_one(&self, book: &Book, at: usize, readers: Readers) -> io::Result<()> {
        let mut stream = self.way.connect(self.target).await?;
        stream.write_all(b"D").await?;
        let mut bytes = vec![0; BULK];
        let (started, mut taken) = (Instant::now(), 0.0);
        let mut is_first = true;
        loop {
            let length = stream.read(&mut bytes).await?;
            if length == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            book.bytes[at].fetch_add(length as u64, Ordering::Relaxed);
            if std::mem::take(&mut is_first) {
                book.is_ready();
            }
            match readers {
                Readers::Fast => tokio::task::yield_now().await,
                Readers::Slow(rate) => {
                    #[expect(clippy::cast_precision_loss, reason = "a buffer's length")]
                    let length = length as f64;
                    taken += length;
                    let ahead = taken / rate - started.elapsed().as_secs_f64();
                    if ahead > 0.001 {
                        sleep(Duration::from_secs_f64(ahead)).await;
                    }
                }
                Readers::Stopped => std::future::pending().await,
            }
        }
    }

    fn write(&self, users: &mut JoinSet<()>, book: &Arc<Book>, id: u64) {
        let (field, book) = (self.clone(), book.clone());
        users.spawn(async move {
            let written: io::Result<()> = async {
                let mut stream = field.way.connect(field.target).await?;
                stream.write_u8(b'U').await?;
                stream.write_u64(id).await?;
                book.is_ready();
                let bytes = vec![0; BULK];
                loop {
                    stream.write_all(&bytes).await?;
                    tokio::task::yield_now().await;
                }
            }
            .await;
            if let Err(error) = written {
                book.failed(&error);
            }
        });
    }

    /// What the target has got by id, asked past the tunnel.
    async fn swallowed(&self, first: u64, count: u64) -> Result<Vec<u64>> {
        if count == 0 {
            return Ok(Vec::new());
        }
        let mut stream = TcpStream::connect(self.target).await?;
        stream.write_u8(b'Q').await?;
        stream.write_u64(first).await?;
        stream.write_u64(count).await?;
        let mut counts = Vec::new();
        for _ in 0..count {
            counts.push(stream.read_u64().await?);
        }
        Ok(counts)
    }

    // === requests ===

    async fn requests(&self, users: usize, beside: Option<(usize, Readers)>) -> Result<Figures> {
        let (streams, readers) = beside.unwrap_or((0, Readers::Fast));
        let bulk = Book::new(streams);
        let mut tasks = JoinSet::new();
        for stream in 0..streams {
            self.read(&mut tasks, &bulk, stream, readers);
        }
        bulk.all_ready(streams).await;
        let book = Book::new(0);
        for _ in 0..users {
            let (field, book) = (self.clone(), book.clone());
            tasks.spawn(async move {
                if let Err(error) = field.request(&book).await {
                    book.failed(&error);
                }
            });
        }
        book.all_ready(users).await;
        sleep(self.warm).await;
        let before = bulk.counts();
        let window = self.watch_now(&book).await;
        let after = bulk.counts();
        let mut figures = Self::close(&window, &[&book, &bulk]);
        book.operations(&window, &mut figures);
        if streams > 0 {
            carried(&before, &after, &window, &mut figures);
        }
        Ok(figures)
    }

    async fn request(&self, book: &Book) -> io::Result<()> {
        let mut stream = self.way.connect(self.target).await?;
        stream.write_all(b"E").await?;
        let (request, mut answer) = ([7; REQUEST], [0; REQUEST]);
        let mut is_first = true;
        loop {
            let asked = Instant::now();
            stream.write_all(&request).await?;
            stream.read_exact(&mut answer).await?;
            book.took(asked);
            if std::mem::take(&mut is_first) {
                book.is_ready();
            }
        }
    }

    // === connections ===

    async fn connections(&self, users: usize) -> Result<Figures> {
        let book = Book::new(0);
        let mut tasks = JoinSet::new();
        for _ in 0..users {
            let (field, book) = (self.clone(), book.clone());
            tasks.spawn(async move {
                loop {
                    let asked = Instant::now();
                    match field.echo_once().await {
                        Ok(_) => book.took(asked),
                        Err(error) => {
                            book.failed(&error);
                            sleep(Duration::from_millis(20)).await;
                        }
                    }
                }
            });
        }
        let window = self.watch(&book).await;
        let mut figures = Self::close(&window, &[&book]);
        book.operations(&window, &mut figures);
        Ok(figures)
    }

    /// A stream on which one byte was echoed.
    pub(crate) async fn echo_once(&self) -> io::Result<TcpStream> {
        let echo = async {
            let mut stream = self.way.connect(self.target).await?;
            stream.write_all(b"Ex").await?;
            stream.read_u8().await?;
            Ok(stream)
        };
        timeout(PATIENCE, echo).await?
    }

    // === idle ===

    async fn idle(&self, streams: usize) -> Result<Figures> {
        let held = self.hold(streams).await?;
        let mut figures = held.figures.clone();
        let before = self.watched.sample();
        sleep(self.window).await;
        let after = self.watched.sample();
        figures.values.insert("idle_cpu_s_per_s", after.cpu_since(&before) / self.window.as_secs_f64());
        Ok(figures)
    }

    /// Opens streams, 32 at a time, and keeps them; what they cost is in the figures.
    pub(crate) async fn hold(&self, streams: usize) -> Result<Held> {
        let before = self.watched.sample();
        let (next, book) = (Arc::new(AtomicUsize::new(0)), Book::new(0));
        let mut users = JoinSet::new();
        for _ in 0..streams.min(32) {
            let (field, next, book) = (self.clone(), next.clone(), book.clone());
            users.spawn(async move {
                let mut held = Vec::new();
                while next.fetch_add(1, Ordering::Relaxed) < streams {
                    match field.echo_once().await {
                        Ok(stream) => held.push(stream),
                        Err(error) => book.failed(&error),
                    }
                }
                held
            });
        }
        let held: Vec<TcpStream> = users.join_all().await.into_iter().flatten().collect();
        sleep(Duration::from_millis(500)).await;
        let after = self.watched.sample();
        let mut figures = Figures::default();
        book.close(&mut figures);
        #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
        let (grown, count) = (
            (after.tunnel.resident as f64 - before.tunnel.resident as f64) / 1024.0,
            held.len().max(1) as f64,
        );
        figures.values.insert("kib_per_stream", grown / count);
        figures.values.insert("cpu_ms_per_1k", after.cpu_since(&before) * 1e6 / count);
        Ok(Held { figures, _streams: held })
    }

    // === HTTP ===

    async fn http(&self, users: usize) -> Result<Figures> {
        let book = Book::new(0);
        let mut tasks = JoinSet::new();
        for _ in 0..users {
            let (field, book) = (self.clone(), book.clone());
            tasks.spawn(async move {
                if let Err(error) = field.http_one(&book).await {
                    book.failed(&error);
                }
            });
        }
        book.all_ready(users).await;
        let window = self.watch(&book).await;
        let mut figures = Self::close(&window, &[&book]);
        book.operations(&window, &mut figures);
        Ok(figures)
    }

    async fn http_one(&self, book: &Book) -> io::Result<()> {
        let (mut stream, head) = self.way.http(self.target, BODY).await?;
        let mut answer = Vec::with_capacity(16 * 1024);
        let mut is_first = true;
        loop {
            let asked = Instant::now();
            stream.write_all(head.as_bytes()).await?;
            answer.clear();
            let mut body = None;
            while body.is_none_or(|start| answer.len() < start + BODY) {
                if stream.read_buf(&mut answer).await? == 0 {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                if body.is_none() {
                    body = answer.windows(4).position(|four| four == b"\r\n\r\n").map(|end| end + 4);
                }
            }
            if !answer.starts_with(b"HTTP/1.1 200") {
                return Err(io::Error::other("the answer is not 200"));
            }
            book.took(asked);
            if std::mem::take(&mut is_first) {
                book.is_ready();
            }
        }
    }

    // === datagrams ===

    async fn datagrams(&self, users: usize) -> Result<Figures> {
        let book = Book::new(0);
        let mut tasks = JoinSet::new();
        for _ in 0..users {
            let (field, book) = (self.clone(), book.clone());
            tasks.spawn(async move {
                if let Err(error) = field.datagrams_of_one(&book).await {
                    book.failed(&error);
                }
            });
        }
        book.all_ready(users).await;
        let window = self.watch(&book).await;
        let mut figures = Self::close(&window, &[&book]);
        book.operations(&window, &mut figures);
        #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
        let [lost, sent] = [&book.lost, &book.sent].map(|count| count.load(Ordering::Relaxed) as f64);
        figures.values.insert("loss_pct", 100.0 * lost / sent.max(1.0));
        Ok(figures)
    }

    async fn datagrams_of_one(&self, book: &Book) -> io::Result<()> {
        let (socket, header, _control) = self.way.udp(self.target).await?;
        let started = Instant::now();
        let mut out = header.clone();
        out.resize(header.len() + DATAGRAM, 0);
        let mut answer = vec![0; 1 << 16];
        let (mut under_way, mut is_first) = (0, true);
        loop {
            while under_way < UNDER_WAY {
                let now = started.elapsed().as_nanos() as u64;
                out[header.len()..header.len() + 8].copy_from_slice(&now.to_be_bytes());
                socket.send(&out).await?;
                under_way += 1;
                if book.is_measuring() {
                    book.sent.fetch_add(1, Ordering::Relaxed);
                }
            }
            let Ok(received) = timeout(Duration::from_millis(300), socket.recv(&mut answer)).await else {
                if book.is_measuring() {
                    book.lost.fetch_add(under_way, Ordering::Relaxed);
                }
                under_way = 0;
                continue;
            };
            let Some(stamp) = answer[..received?].get(header.len()..header.len() + 8) else { continue };
            let sent = Duration::from_nanos(u64::from_be_bytes(stamp.try_into().map_err(io::Error::other)?));
            under_way = under_way.saturating_sub(1);
            book.took(started + sent);
            if std::mem::take(&mut is_first) {
                book.is_ready();
            }
        }
    }
}

/// Streams that live until this is dropped, and what it cost to open them.
pub(crate) struct Held {
    pub(crate) figures: Figures,
    _streams: Vec<TcpStream>,
}

/// The first of so many ids that no other load of this process uses at the same time.
fn ids(count: u64) -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    NEXT.fetch_add(count, Ordering::Relaxed) % (IDS - 1_024)
}

/// How many GiB were carried, with rate and fairness among the figures.
#[expect(clippy::cast_precision_loss, reason = "bytes of a few seconds are below 2^52")]
fn carried(before: &[u64], after: &[u64], window: &Window, figures: &mut Figures) -> f64 {
    let each: Vec<f64> = before.iter().zip(after).map(|(before, after)| (after - before) as f64).collect();
    let bytes: f64 = each.iter().sum();
    let least = each.iter().copied().fold(f64::INFINITY, f64::min);
    figures.values.insert("gib_s", bytes / GIB / window.seconds);
    if bytes > 0.0 {
        figures.values.insert("least_share", least * each.len() as f64 / bytes);
    }
    bytes / GIB
}
