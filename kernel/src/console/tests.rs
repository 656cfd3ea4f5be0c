//! A console ring, with readers that come at once, late or never.

use super::*;

struct Reader(Box<core::mem::MaybeUninit<ConsoleRing>>);

impl Reader {
    fn new() -> (Reader, Console) {
        let mut ring = Box::<ConsoleRing>::new_zeroed();
        let pointer = NonNull::new(ring.as_mut_ptr()).unwrap();
        let mut console = Console::detached();
        // SAFETY: the tests keep the reader as long as the console.
        unsafe { console.attach(pointer) };
        (Reader(ring), console)
    }

    fn read(&mut self, most: usize) -> String {
        let ring = self.0.as_mut_ptr();
        let mut text = String::new();
        // SAFETY: zeroed integers are valid; one thread.
        unsafe {
            while text.len() < most
                && (*ring).out_cons.load(Ordering::Relaxed)
                    != (*ring).out_prod.load(Ordering::Relaxed)
            {
                let at = (*ring).out_cons.fetch_add(1, Ordering::Relaxed);
                text.push(char::from((*ring).output[at as usize % OUT_BYTES]));
            }
        }
        text
    }

    fn type_in(&mut self, keys: &[u8]) {
        let ring = self.0.as_mut_ptr();
        for key in keys {
            // SAFETY: as above.
            unsafe {
                let at = (*ring).in_prod.fetch_add(1, Ordering::Relaxed);
                (*ring).input[at as usize % IN_BYTES] = *key;
            }
        }
    }
}

/// Fails the test: no writer waits while there is room.
fn no_wait() -> bool {
    panic!("there is room")
}

#[test]
fn text_arrives_across_the_end_of_the_ring() {
    let (mut reader, mut console) = Reader::new();
    for round in 0..500 {
        let line = format!("line {round}\r\n");
        console.write(&line, OnFull::Wait(&mut no_wait));
        assert_eq!(reader.read(usize::MAX), line);
    }
    assert!(console.is_drained());
}

#[test]
fn a_slow_reader_is_waited_for() {
    let (mut reader, mut console) = Reader::new();
    let text = "0123456789".repeat(1000);
    let mut seen = String::new();
    let mut wait = || {
        seen += &reader.read(100);
        true
    };
    console.write(&text, OnFull::Wait(&mut wait));
    seen += &reader.read(usize::MAX);
    assert!(seen == text);
}

#[test]
fn an_absent_reader_costs_one_wait_and_is_told_what_it_missed() {
    let (mut reader, mut console) = Reader::new();
    let mut waits = 0;
    let mut wait = || {
        waits += 1;
        false
    };
    for _ in 0..5 {
        console.write(&"x".repeat(1000), OnFull::Wait(&mut wait));
    }
    assert_eq!(waits, 1);
    assert_eq!(reader.read(usize::MAX).len(), OUT_BYTES);
    console.write("back\r\n", OnFull::Wait(&mut no_wait));
    assert_eq!(
        reader.read(usize::MAX),
        format!(
            "\r\n[{} bytes of output lost]\r\nback\r\n",
            5000 - OUT_BYTES
        )
    );
}

#[test]
fn a_late_reader_finds_what_was_kept_for_it() {
    let (mut reader, mut console) = Reader::new();
    let mut written = String::new();
    let mut seen = String::new();
    for round in 0..5000 {
        let line = format!("line {round}\r\n");
        console.write(&line, OnFull::Keep);
        written += &line;
        if round % 500 == 499 {
            // It reads what there is, and notifies.
            seen += &reader.read(usize::MAX);
            while console.flush() {
                seen += &reader.read(usize::MAX);
            }
        }
    }
    assert!(console.is_drained());
    assert!(seen == written);
}

#[test]
fn what_there_is_no_room_for_is_dropped_at_once_and_counted() {
    // None of these readers can hold up the writer: it has no means to wait.
    for read_at_a_time in [0, 1, 7, 100] {
        let (mut reader, mut console) = Reader::new();
        let line = "x".repeat(98) + "\r\n";
        let mut seen = String::new();
        for _ in 0..2000 {
            console.write(&line, OnFull::Keep);
            seen += &reader.read(read_at_a_time);
        }
        let mut rest = |console: &mut Console| {
            seen += &reader.read(usize::MAX);
            while console.flush() {
                seen += &reader.read(usize::MAX);
            }
        };
        rest(&mut console);
        // The number that is missing is told before whatever comes next.
        console.write("back\r\n", OnFull::Keep);
        rest(&mut console);
        assert!(seen.ends_with("back\r\n"));
        let written = 2000 * line.len() + "back\r\n".len();
        let (mut lost, mut arrived) = (0, seen.len());
        for note in seen.split("\r\n[").skip(1) {
            let (number, _) = note.split_once(" bytes of output lost]\r\n").unwrap();
            lost += number.parse::<usize>().unwrap();
            arrived -= "\r\n[ bytes of output lost]\r\n".len() + number.len();
        }
        assert_eq!(arrived + lost, written, "{read_at_a_time} at a time");
        assert_eq!(lost > 0, read_at_a_time < line.len());
    }
}

#[test]
fn emergency_messages_come_before_what_nobody_reads() {
    let (mut reader, mut console) = Reader::new();
    for _ in 0..100 {
        console.write(&"x".repeat(100), OnFull::Keep);
    }
    // A reader that is there gets all of it.
    let mut seen = String::new();
    let mut wait = || {
        seen += &reader.read(usize::MAX);
        true
    };
    console.write("panic\r\n", OnFull::Wait(&mut wait));
    seen += &reader.read(usize::MAX);
    assert_eq!(seen.len(), 100 * 100 + "panic\r\n".len());
    // One that is not is given up; it may come later.
    for _ in 0..100 {
        console.write(&"x".repeat(100), OnFull::Keep);
    }
    console.write("panic\r\n", OnFull::Wait(&mut || false));
    reader.read(usize::MAX);
    console.write("and so on\r\n", OnFull::Wait(&mut no_wait));
    let told = format!(
        "\r\n[{} bytes of output lost]\r\nand so on\r\n",
        100 * 100 - OUT_BYTES + "panic\r\n".len()
    );
    assert_eq!(reader.read(usize::MAX), told);
}

#[test]
fn keys_come_in_order() {
    let (mut reader, mut console) = Reader::new();
    assert!(!console.has_input());
    assert_eq!(console.read(), None);
    for _ in 0..300 {
        reader.type_in(b"help\r");
        let keys: Vec<u8> = std::iter::from_fn(|| console.read()).collect();
        assert_eq!(keys, b"help\r");
    }
}

#[test]
fn line_ends_are_those_of_terminals() {
    let (mut text, line) = (String::new(), "c\n");
    write!(Lines(|part: &str| text += part), "a\nb{}\n", line).unwrap();
    assert_eq!(text, "a\r\nbc\r\n\r\n");
}
