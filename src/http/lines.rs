//! A body whose lines are handed over while it arrives: taken off the wire by a task of its own, so that a client that
//! sends everything before it reads an answer is never in its own way; unpacked piece by piece, so that a small body
//! never becomes a large one at once.

use std::collections::VecDeque;
use std::io::Write;

use bytes::Bytes;
use flate2::write::MultiGzDecoder;
use flate2::{Decompress, FlushDecompress, Status};
use ruzstd::decoding::{BlockDecodingStrategy, FrameDecoder};
use tokio::sync::mpsc;

use crate::error::{Code, Error, Result};
use crate::net::budget::Room;

/// Unpacked at once, when all lines before it are handed over: gzip makes at most a thousand times as much of it.
const STEP_BYTES: usize = 1024;
/// Of a line. An event with the longest metadata, all of it escapes, is a quarter of it.
const LINE_BYTES_MAX: usize = 1 << 20;
/// Of a packed body, what may be unpacked at once, beside a window: a line that has no end yet, and a step.
pub const UNPACKED_BYTES_MAX: usize = 2 << 20;
/// Of each body, beside what its room is for.
const UNCOUNTED_BYTES: usize = 64 * 1024;
/// Line breaks are looked for behind it only; what was handed over is thrown away in pieces of this size.
const KEPT_BYTES: usize = 256 * 1024;

/// A piece of a body, as it came, and the room that it takes.
pub struct Piece {
    pub bytes: Bytes,
    pub room: Option<Room>,
}

/// An error is the last one.
pub type Pieces = mpsc::UnboundedReceiver<Result<Piece>>;

pub struct Lines {
    pieces: Pieces,
    /// Of the last piece, what is not unpacked yet.
    packed: Bytes,
    unpacker: Unpacker,
    /// Unpacked and not handed over, from `at` on; up to `searched` there is no line break.
    text: Vec<u8>,
    at: usize,
    searched: usize,
    unpacked: usize,
    limit: usize,
    has_ended: bool,
    /// Of the pieces whose lines may still be in memory, here or with whoever stores them, and how long each was.
    rooms: VecDeque<(usize, Room)>,
}

impl Lines {
    pub fn new(pieces: Pieces, unpacker: Unpacker, limit: usize) -> Lines {
        let (text, at, searched, unpacked) = (Vec::new(), 0, 0, 0);
        Lines {
            pieces,
            packed: Bytes::new(),
            unpacker,
            text,
            at,
            searched,
            unpacked,
            limit,
            has_ended: false,
            rooms: VecDeque::new(),
        }
    }

    /// The next line that is there already. One that is not UTF-8 is an error of that line alone.
    pub fn ready(&mut self) -> Option<Result<String>> {
        let found = self.text[self.searched..].iter().position(|byte| *byte == b'\n');
        let end = match found {
            Some(at) => self.searched + at,
            None if self.has_ended && self.at < self.text.len() => self.text.len(),
            None => {
                self.searched = self.text.len();
                return None;
            }
        };
        let line = std::str::from_utf8(&self.text[self.at..end]).map(str::to_owned);
        self.at = (end + 1).min(self.text.len());
        self.searched = self.at;
        if self.at > KEPT_BYTES || self.at == self.text.len() {
            self.text.drain(..self.at);
            (self.at, self.searched) = (0, 0);
        }
        Some(line.map_err(|_| Error::invalid_json()))
    }

    /// Waits for more; false when there will be none. Nothing is lost when it is not waited for to the end.
    pub async fn more(&mut self) -> Result<bool> {
        if self.has_ended {
            return Ok(false);
        }
        // what is there has no line break, or it would have been handed over
        if self.text.len() - self.at > LINE_BYTES_MAX {
            self.has_ended = true;
            return Err(Error::invalid(format_args!(
                "a line must not be longer than {LINE_BYTES_MAX} bytes"
            )));
        }
        if self.packed.is_empty() && !self.unpacker.is_behind() {
            let Some(piece) = self.pieces.recv().await else {
                self.has_ended = true;
                let before = self.text.len();
                self.unpacker.end(&mut self.text)?;
                return self.count(before).map(|()| true);
            };
            match piece {
                Ok(Piece { bytes, room }) => {
                    self.rooms.extend(room.map(|room| (bytes.len(), room)));
                    self.packed = bytes;
                }
                Err(error) => {
                    self.has_ended = true;
                    return Err(error);
                }
            }
        }
        let taken = self.unpack();
        // what comes behind something broken is not looked at
        self.has_ended = taken.is_err();
        taken.map(|()| true)
    }

    /// Gives back the room of lines that were handed over and are not held any more: all but what is left here takes. A little
    /// of a line may be left without room: many bodies that each hold some and wait for more would wait for each other.
    pub fn give_back(&mut self) {
        let left = self.text.len() - self.at + self.packed.len();
        let mut held: usize = self.rooms.iter().map(|(bytes, _)| bytes).sum();
        while let Some((bytes, _)) = self.rooms.front()
            && (left <= UNCOUNTED_BYTES || held - bytes >= left)
        {
            held -= bytes;
            self.rooms.pop_front();
        }
    }

    fn unpack(&mut self) -> Result<()> {
        let step = match &self.unpacker {
            Unpacker::Plain => std::mem::take(&mut self.packed),
            unpacker if unpacker.is_behind() => Bytes::new(),
            _ => self.packed.split_to(STEP_BYTES.min(self.packed.len())),
        };
        let before = self.text.len();
        // a window is held for as long as the body arrives: one as large as a whole body is for those that are read at once
        self.unpacker.push(&step, &mut self.text, self.limit.min(WINDOW_BYTES))?;
        self.count(before)
    }

    /// What came behind `before`.
    fn count(&mut self, before: usize) -> Result<()> {
        self.unpacked += self.text.len() - before;
        if self.unpacked > self.limit {
            self.text.truncate(before);
            return Err(super::body::too_large(self.limit));
        }
        Ok(())
    }
}

/// How a body is unpacked while it arrives.
pub enum Unpacker {
    Plain,
    Gzip(Box<MultiGzDecoder<Vec<u8>>>),
    Deflate(Box<Deflate>),
    Zstd(Box<Zstd>),
}

impl Unpacker {
    pub fn gzip() -> Unpacker {
        Unpacker::Gzip(Box::new(MultiGzDecoder::new(Vec::new())))
    }

    pub fn deflate() -> Unpacker {
        Unpacker::Deflate(Box::new(Deflate { stream: Decompress::new(true), has_ended: false }))
    }

    pub fn zstd() -> Unpacker {
        Unpacker::Zstd(Box::default())
    }

    /// Whether more can be had of what was pushed.
    fn is_behind(&self) -> bool {
        matches!(self, Unpacker::Zstd(packer) if packer.is_behind)
    }

    fn push(&mut self, packed: &[u8], to: &mut Vec<u8>, limit: usize) -> Result<()> {
        let written = match self {
            Unpacker::Plain => {
                to.extend_from_slice(packed);
                Ok(())
            }
            Unpacker::Gzip(packer) => packer.write_all(packed).map(|()| to.append(packer.get_mut())),
            Unpacker::Deflate(packer) => return packer.push(packed, to),
            Unpacker::Zstd(packer) => return packer.push(packed, to, limit),
        };
        written.map_err(|_| Error::invalid_json())
    }

    /// What is left; an error when something is missing.
    fn end(&mut self, to: &mut Vec<u8>) -> Result<()> {
        let ended = match self {
            Unpacker::Plain => return Ok(()),
            Unpacker::Gzip(packer) => packer.try_finish().map(|()| to.append(packer.get_mut())),
            Unpacker::Deflate(packer) if packer.has_ended => return Ok(()),
            Unpacker::Deflate(_) => return Err(Error::invalid_json()),
            Unpacker::Zstd(packer) if packer.is_between_frames() => return Ok(()),
            Unpacker::Zstd(_) => return Err(Error::invalid_json()),
        };
        ended.map_err(|_| Error::invalid_json())
    }
}

/// The library's own writer does not tell a stream that was cut off from one that is whole.
pub struct Deflate {
    stream: Decompress,
    has_ended: bool,
}

impl Deflate {
    fn push(&mut self, mut packed: &[u8], to: &mut Vec<u8>) -> Result<()> {
        loop {
            if self.has_ended {
                return if packed.is_empty() { Ok(()) } else { Err(Error::invalid_json()) };
            }
            to.reserve(STEP_BYTES);
            let (before, length) = (self.stream.total_in(), to.len());
            let status = self.stream.decompress_vec(packed, to, FlushDecompress::None);
            let status = status.map_err(|_| Error::invalid_json())?;
            let taken = (self.stream.total_in() - before) as usize;
            packed = &packed[taken..];
            self.has_ended = status == Status::StreamEnd;
            if taken == 0 && to.len() == length && !packed.is_empty() && !self.has_ended {
                return Err(Error::invalid_json());
            }
            // with room left there is nothing more to be had of what came
            if packed.is_empty() && to.len() < to.capacity() && !self.has_ended {
                return Ok(());
            }
        }
    }
}

/// Frames of zstd, block by block: the library reads from a source that has to have the whole of one.
#[derive(Default)]
pub struct Zstd {
    packed: Vec<u8>,
    /// The frame that is open, and whether a checksum ends it.
    frame: Option<(FrameDecoder, bool)>,
    /// Blocks that are there were left for the next push: a few bytes can be a hundred thousand unpacked.
    is_behind: bool,
}

/// Unpacked by one push at most, and a block more.
const BLOCKS_BYTES: usize = 1 << 20;
const BLOCK_HEAD: usize = 3;
const CHECKSUM: usize = 4;
/// Windows of usual frames; larger ones have to be of use here.
pub const WINDOW_BYTES: usize = 8 << 20;

impl Zstd {
    fn is_between_frames(&self) -> bool {
        self.packed.is_empty() && self.frame.is_none()
    }

    fn push(&mut self, packed: &[u8], to: &mut Vec<u8>, limit: usize) -> Result<()> {
        self.packed.extend_from_slice(packed);
        let before = to.len();
        self.is_behind = false;
        while self.step(to, limit)? {
            if to.len() - before > BLOCKS_BYTES {
                self.is_behind = true;
                break;
            }
        }
        Ok(())
    }

    /// One head of a frame or one block; false when it is not there as a whole.
    fn step(&mut self, to: &mut Vec<u8>, limit: usize) -> Result<bool> {
        let broken = || Error::invalid_json();
        let Some((frame, has_checksum)) = &mut self.frame else {
            let Some(head) = Head::of(&self.packed)? else { return Ok(false) };
            let most = WINDOW_BYTES.max(limit);
            if head.window > most as u64 {
                let rule = format!("the window of a zstd frame must not be larger than {most} bytes");
                return Err(Error::new(Code::RequestTooLarge, rule));
            }
            let mut frame = FrameDecoder::new();
            frame.init(&self.packed[..head.length]).map_err(|_| broken())?;
            self.packed.drain(..head.length);
            self.frame = Some((frame, head.has_checksum));
            return Ok(true);
        };
        let Some(head) = self.packed.first_chunk::<BLOCK_HEAD>() else { return Ok(false) };
        let head = u32::from_le_bytes([head[0], head[1], head[2], 0]);
        let content = if (head >> 1) & 3 == 1 { 1 } else { (head >> 3) as usize };
        let is_last = head & 1 == 1;
        // a checksum is part of what the library reads with the last block
        let checksum = if is_last && *has_checksum { CHECKSUM } else { 0 };
        let length = BLOCK_HEAD + content + checksum;
        if self.packed.len() < length {
            return Ok(false);
        }
        frame
            .decode_blocks(&self.packed[..length], BlockDecodingStrategy::UptoBlocks(1))
            .map_err(|_| broken())?;
        self.packed.drain(..length);
        frame.collect_to_writer(&mut *to).map_err(|_| broken())?;
        if is_last {
            self.frame = None;
        }
        Ok(true)
    }
}

/// What stands at the head of a frame. Read by hand: the library keeps its own reader of heads to itself, and its limit of a
/// window is 100 MiB and not to be changed.
struct Head {
    length: usize,
    /// How much of what is unpacked has to be held.
    window: u64,
    has_checksum: bool,
}

impl Head {
    /// None while it is not there as a whole.
    fn of(bytes: &[u8]) -> Result<Option<Head>> {
        const MAGIC: [u8; 4] = 0xFD2F_B528_u32.to_le_bytes();
        if !MAGIC.iter().zip(bytes).all(|(wanted, byte)| wanted == byte) {
            return Err(Error::invalid_json());
        }
        let Some(flags) = bytes.get(MAGIC.len()) else { return Ok(None) };
        let is_single = flags & 0x20 != 0;
        let dictionary = [0, 1, 2, 4][usize::from(flags & 3)];
        let size = match (flags >> 6, is_single) {
            (0, false) => 0,
            (0, true) => 1,
            (log, _) => 1 << log,
        };
        let at = MAGIC.len() + 1;
        let length = at + usize::from(!is_single) + dictionary + size;
        let Some(rest) = bytes.get(at..length) else { return Ok(None) };
        let window = match is_single {
            true => little_endian(&rest[dictionary..]),
            false => {
                let base = 1u64 << (10 + (rest[0] >> 3));
                base + base / 8 * u64::from(rest[0] & 7)
            }
        };
        Ok(Some(Head { length, window, has_checksum: flags & 4 != 0 }))
    }
}

fn little_endian(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte))
}

/// A whole body; `limit` and one more byte at most.
pub fn unpack_zstd(packed: &[u8], limit: usize) -> Result<Vec<u8>> {
    let (mut zstd, mut text) = (Zstd::default(), Vec::new());
    let mut steps = packed.chunks(STEP_BYTES);
    while let Some(step) = if zstd.is_behind { Some(&[][..]) } else { steps.next() } {
        zstd.push(step, &mut text, limit)?;
        if text.len() > limit {
            return Err(super::body::too_large(limit));
        }
    }
    if zstd.is_between_frames() { Ok(text) } else { Err(Error::invalid_json()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn zstd(text: &[u8]) -> Vec<u8> {
        ruzstd::encoding::compress_to_vec(text, ruzstd::encoding::CompressionLevel::Fastest)
    }

    fn gzip(text: &[u8]) -> Vec<u8> {
        let mut packer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        packer.write_all(text).expect("memory");
        packer.finish().expect("memory")
    }

    fn deflate(text: &[u8]) -> Vec<u8> {
        let mut packer = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::default());
        packer.write_all(text).expect("memory");
        packer.finish().expect("memory")
    }

    /// The lines of a body that comes in pieces of this size.
    async fn read(unpacker: Unpacker, body: &[u8], size: usize, limit: usize) -> Result<Vec<String>> {
        let (sender, pieces) = mpsc::unbounded_channel();
        for piece in body.chunks(size) {
            sender.send(Ok(Piece { bytes: Bytes::copy_from_slice(piece), room: None })).expect("a reader");
        }
        drop(sender);
        let (mut lines, mut found) = (Lines::new(pieces, unpacker, limit), Vec::new());
        loop {
            while let Some(line) = lines.ready() {
                found.push(line?);
            }
            if !lines.more().await? {
                return Ok(found);
            }
        }
    }

    #[tokio::test]
    async fn lines_are_the_same_however_they_come() {
        let wanted: Vec<String> = (0..3_000).map(|at| format!("{at} {}", "ü".repeat(at % 97))).collect();
        let text = wanted.join("\n").into_bytes();
        let two_frames = [zstd(&text[..5_000]), zstd(&text[5_000..])].concat();
        type New = fn() -> Unpacker;
        let cases: [(New, Vec<u8>); 5] = [
            (|| Unpacker::Plain, text.clone()),
            (Unpacker::gzip, gzip(&text)),
            (Unpacker::deflate, deflate(&text)),
            (Unpacker::zstd, zstd(&text)),
            (Unpacker::zstd, two_frames),
        ];
        for (new, body) in cases {
            for size in [1, 7, 4_096, usize::MAX] {
                let found = read(new(), &body, size, text.len()).await.expect("readable");
                assert!(found == wanted, "{size}");
            }
            assert!(read(new(), &body, 1_000, text.len() - 1).await.is_err(), "too long");
        }
    }

    #[tokio::test]
    async fn what_is_cut_off_or_no_such_thing_is_refused() {
        let text = "0123456789".repeat(1_000).into_bytes();
        for (new, body) in [
            (Unpacker::gzip as fn() -> Unpacker, gzip(&text)),
            (Unpacker::deflate, deflate(&text)),
            (Unpacker::zstd, zstd(&text)),
        ] {
            for end in [1, body.len() / 2, body.len() - 1] {
                assert!(read(new(), &body[..end], 11, 1 << 20).await.is_err(), "{end}");
            }
            assert!(read(new(), b"no such thing\n", 11, 1 << 20).await.is_err());
        }
    }

    /// Blocks of one byte and a length are a hundred thousand times as long unpacked, and a large window says that all of it is
    /// held.
    #[test]
    fn a_large_window_is_refused_before_anything_is_held() {
        let block = |is_last: bool| {
            let head = u32::from(is_last) | 1 << 1 | (128 * 1024) << 3;
            [&head.to_le_bytes()[..3], b" "].concat()
        };
        for head in [
            vec![0x28, 0xB5, 0x2F, 0xFD, 0, 0xA8],
            [vec![0x28, 0xB5, 0x2F, 0xFD, 0xE0], vec![0xFF; 8]].concat(),
        ] {
            let mut body = head;
            (0..1_000).for_each(|_| body.extend(block(false)));
            let error = unpack_zstd(&body, 1 << 20).expect_err("refused");
            assert_eq!(error.code, crate::error::Code::RequestTooLarge);
        }
        let mut body = vec![0x28, 0xB5, 0x2F, 0xFD, 0, 0x50];
        (0..1_000).for_each(|_| body.extend(block(false)));
        assert!(unpack_zstd(&body, 1 << 20).is_err(), "beyond the limit");
        let small = [vec![0x28, 0xB5, 0x2F, 0xFD, 0, 0x50], block(true)].concat();
        assert_eq!(unpack_zstd(&small, 1 << 20).expect("readable"), vec![b' '; 128 * 1024]);
    }

    /// Room stands for what is held: of a line that has no end yet all of it, of what was handed over nothing.
    #[tokio::test]
    async fn room_is_given_back_for_what_is_not_held() {
        let budget = crate::net::budget::Budget::new(1 << 20);
        let (sender, pieces) = mpsc::unbounded_channel();
        let send = async |text: Vec<u8>| {
            let mut room = budget.room(crate::net::budget::Tenant::Workspace(1));
            room.grow(text.len()).await.expect("room");
            sender.send(Ok(Piece { bytes: text.into(), room: Some(room) })).expect("a reader");
        };
        let mut lines = Lines::new(pieces, Unpacker::Plain, 1 << 20);
        for _ in 0..3 {
            send(vec![b'x'; 100_000]).await;
            lines.more().await.expect("readable");
            assert!(lines.ready().is_none());
            lines.give_back();
        }
        assert_eq!(lines.rooms.len(), 3, "one line that is not there yet");
        send(b"\nshort".to_vec()).await;
        lines.more().await.expect("readable");
        assert_eq!(lines.rooms.len(), 4, "nothing before it is asked for");
        assert_eq!(lines.ready().expect("the line").expect("a text").len(), 300_000);
        lines.give_back();
        assert_eq!(lines.rooms.len(), 0, "a little is left");
    }

    #[tokio::test]
    async fn a_small_body_is_not_held_as_a_large_one() {
        let text = "a".repeat(8 << 20).into_bytes();
        for (new, body) in [(Unpacker::gzip as fn() -> Unpacker, gzip(&text)), (Unpacker::zstd, zstd(&text))]
        {
            let (sender, pieces) = mpsc::unbounded_channel();
            sender.send(Ok(Piece { bytes: body.into(), room: None })).expect("a reader");
            let mut lines = Lines::new(pieces, new(), 32 << 20);
            let mut most = 0;
            let error = loop {
                assert!(lines.ready().is_none(), "there is no line break");
                match lines.more().await {
                    Ok(true) => most = most.max(lines.text.len()),
                    Ok(false) => panic!("it is too long"),
                    Err(error) => break error,
                }
            };
            assert!(error.message.contains("a line must not be longer"), "{}", error.message);
            assert!(most <= LINE_BYTES_MAX + 1100 * STEP_BYTES + BLOCKS_BYTES, "{most}");
        }
    }

    #[tokio::test]
    async fn a_line_that_is_no_text_fails_alone() {
        let (sender, pieces) = mpsc::unbounded_channel();
        let bytes = Bytes::from_static(b"a\n\xFF\xFE\nb");
        sender.send(Ok(Piece { bytes, room: None })).expect("a reader");
        drop(sender);
        let mut lines = Lines::new(pieces, Unpacker::Plain, 100);
        while lines.more().await.expect("readable") {}
        let found: Vec<Option<String>> = std::iter::from_fn(|| lines.ready()).map(Result::ok).collect();
        assert_eq!(found, [Some("a".to_owned()), None, Some("b".to_owned())]);
    }
}
