package stream

import (
	"bytes"
	"errors"
	"hash/crc32"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"sync"
	"syscall"
	"testing"
	"time"
)

type discard struct{}

func (discard) WriteAt(b []byte, _ int64) (int, error) { return len(b), nil }

// The sum of parts, written in any order, is that of the whole; a gap is an error.
func TestSummer(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for range 200 {
		b := make([]byte, 1+r.IntN(5000))
		for i := range b {
			b[i] = byte(r.Uint32())
		}
		cuts := []int{0, len(b)}
		for range r.IntN(5) {
			cuts = append(cuts[:1], append([]int{cuts[0] + r.IntN(cuts[1]-cuts[0]+1)}, cuts[1:]...)...)
		}
		s := &summer{to: discard{}}
		for _, i := range r.Perm(len(cuts) - 1) {
			if cuts[i] == cuts[i+1] {
				continue
			}
			if _, err := s.WriteAt(b[cuts[i]:cuts[i+1]], int64(cuts[i])); err != nil {
				t.Fatal(err)
			}
		}
		sum, n, err := s.sum()
		if want := crc32.Checksum(b, castagnoli); err != nil || sum != want || n != int64(len(b)) {
			t.Fatalf("cut at %v: %#x of %d bytes, %v: want %#x of %d", cuts, sum, n, err, want, len(b))
		}
		if got, err := sumOf(bytes.NewReader(b), int64(len(b))); got != sum || err != nil {
			t.Fatalf("read: %#x, %v", got, err)
		}
		if _, err := sumOf(bytes.NewReader(b), int64(len(b))+1); !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Fatalf("a byte too many: %v", err)
		}
	}
	s := &summer{to: discard{}}
	_, _ = s.WriteAt(make([]byte, 3), 1)
	if _, _, err := s.sum(); err == nil {
		t.Error("a gap has a sum")
	}
}

// written is a journal with two checkpoints and two records after them, and where the
// last checkpoint is: one that is damaged looks like one that was being written.
func written(t *testing.T) (path string, b []byte, tail int) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "o.journal")
	j := &journal{path: path, disk: osDisk{}, header: Header{Version: "v", Device: "cpu"}, start: time.Now(), work: func() float64 { return 7 }}
	tell := func(r record) {
		if err := j.tell(r); err != nil {
			t.Fatal(err)
		}
	}
	for i := range uint32(3) {
		tell(record{kind: kindState, chunk: i, pairs: i + 1, place: 2 * i, sum: 99 * i, bytes: 1000})
		tell(record{kind: kindDone, group: 1, chunk: i, sum: i})
		if i < 2 {
			if err := j.commit(record{kind: kindCheckpoint}, func() error { return nil }); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := j.close(); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return path, b, len(b) - 3*recordBytes
}

func facts(t *testing.T, path string, b []byte) (*Log, error) {
	t.Helper()
	if err := os.WriteFile(path, b, 0o666); err != nil {
		t.Fatal(err)
	}
	return ReadJournal(path)
}

// A journal reads as it was written. Of every bit that flips, and at every length to which
// it may be cut, what is read is an error that says where, or what was told up to there.
func TestJournalDamage(t *testing.T) {
	path, b, tail := written(t)
	whole, err := facts(t, path, b)
	if err != nil {
		t.Fatal(err)
	}
	if len(whole.facts) != 6 || whole.Work != 7 || whole.Ignored != 0 || whole.Pid != os.Getpid() || whole.Saved.IsZero() || whole.Header.Device != "cpu" {
		t.Fatalf("it reads %+v", whole)
	}
	if f := whole.facts[2]; f.kind != kindState || f.chunk != 1 || f.pairs != 2 || f.place != 2 || f.sum != 99 || f.bytes != 1000 {
		t.Errorf("a record reads %+v", f)
	}
	prefix := func(l *Log) bool {
		return len(l.facts) <= len(whole.facts) && reflect.DeepEqual(append([]record{}, l.facts...), append([]record{}, whole.facts[:len(l.facts)]...))
	}
	header := len(b) - recordBytes*whole.Records
	text := bytes.LastIndexByte(b[:header], '}') + 1 // zeros follow
	for bit := range 8 * len(b) {
		at := bit / 8
		if at >= text && at < header || at >= 28 && at < 32 {
			continue // means nothing, and is not read
		}
		c := bytes.Clone(b)
		c[at] ^= 1 << (bit % 8)
		l, err := facts(t, path, c)
		var damaged *CorruptError
		switch {
		case at < tail && !errors.As(err, &damaged):
			t.Fatalf("bit %d, before the last checkpoint: %v", bit, err)
		case at >= tail && (err != nil || !prefix(l) || len(l.facts) > 4+max(0, (at-tail)/recordBytes-1) || l.Ignored == 0):
			t.Fatalf("bit %d, from the last checkpoint on: %v, %+v", bit, err, l)
		}
		if damaged != nil && (at >= header && damaged.Offset != int64(at)/recordBytes*recordBytes || damaged.Path != path) {
			t.Fatalf("byte %d is damaged: %v", at, err)
		}
	}
	for n := range len(b) {
		l, err := facts(t, path, b[:n])
		if n < text && err == nil || n >= header && (err != nil || !prefix(l)) {
			t.Fatalf("cut to %d bytes: %v", n, err)
		}
	}
}

// A journal of a run that goes on tells what there was before apart from what is new.
func TestJournalContinued(t *testing.T) {
	path := filepath.Join(t.TempDir(), "o.journal")
	done := 100.0
	j := &journal{path: path, disk: osDisk{}, start: time.Now(), work: func() float64 { return done }}
	before := []record{{kind: kindState, chunk: 1, pairs: 2, work: 100, bytes: 8}, {kind: kindDone, shard: 1, chunk: 2, work: 100}}
	if err := j.begin(before, []record{{kind: kindCheckpoint, work: 100}, {kind: kindCheckpoint, shard: 1, work: 100}}); err != nil {
		t.Fatal(err)
	}
	done = 130
	if err := errors.Join(j.tell(record{kind: kindDone, shard: 1, chunk: 3}), j.close()); err != nil {
		t.Fatal(err)
	}
	l, err := ReadJournal(path)
	if err != nil {
		t.Fatal(err)
	}
	if l.WorkAt != 100 || l.Work != 130 || len(l.facts) != 3 || !l.knows(0) || !l.knows(1) || l.knows(2) {
		t.Errorf("it reads %+v", l)
	}
}

// A journal whose disk failed once tells nothing more, also when the disk works again.
func TestJournalFails(t *testing.T) {
	nothing := func() error { return nil }
	for at := 0; ; at++ {
		d := newCrashDisk(uint64(at))
		d.fault = fault{at: at, err: syscall.EIO}
		j := &journal{path: crashJournal, disk: d, start: time.Now(), work: func() float64 { return 0 }}
		err := errors.Join(j.tell(record{kind: kindDone}), j.commit(record{kind: kindCheckpoint}, nothing),
			j.tell(record{kind: kindDone}), j.commit(record{kind: kindCheckpoint}, nothing))
		if len(d.failed) == 0 {
			if err != nil || at == 0 {
				t.Fatalf("%d operations: %v", at, err)
			}
			return
		}
		if !errors.Is(err, syscall.EIO) {
			t.Fatalf("operation %d fails: %v", at, err)
		}
		d.fault = fault{}
		d.trace = func(kind, name string, _ int64, _ []byte) {
			t.Fatalf("operation %d failed, and then comes %s %s", at, kind, name)
		}
		for range 2 {
			told, sealed := j.tell(record{kind: kindDone}), j.commit(record{kind: kindCheckpoint}, nothing)
			if !errors.Is(told, syscall.EIO) || !errors.Is(sealed, syscall.EIO) {
				t.Fatalf("operation %d failed; then: %v, %v", at, told, sealed)
			}
		}
	}
}

// Of shards that commit at the same time one does; where its sync fails no other syncs.
func TestJournalCommitsApart(t *testing.T) {
	j := &journal{path: crashJournal, disk: newCrashDisk(0), start: time.Now(), work: func() float64 { return 0 }}
	var shards sync.WaitGroup
	coming := make(chan bool, 1)
	fails := func() error {
		shards.Go(func() {
			coming <- true
			if err := j.commit(record{kind: kindCheckpoint, shard: 1}, func() error {
				t.Error("the other shard syncs meanwhile, or afterwards")
				return nil
			}); !errors.Is(err, syscall.EIO) {
				t.Errorf("the other shard: %v", err)
			}
		})
		<-coming
		time.Sleep(time.Millisecond) // for an error to be found, not for its absence
		return syscall.EIO
	}
	if err := j.commit(record{kind: kindCheckpoint}, fails); !errors.Is(err, syscall.EIO) {
		t.Errorf("the first shard: %v", err)
	}
	shards.Wait()
}
