package stream

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/streamcqsa/streamcqsa/pkg/attention"
)

// Header binds a journal to a run: a run continues only what has the same header.
type Header struct {
	Version    string            `json:"version"` // of the program
	Problem    attention.Problem `json:"problem"`
	LSE        bool              `json:"lse"`
	Devices    int               `json:"devices"`
	Device     string            `json:"device"` // Signature of one
	Choice     Choice            `json:"choice"`
	Inputs     []Input           `json:"inputs"`      // Q, K, V
	Outputs    []Output          `json:"outputs"`     // O and, if it is wanted, lse
	StateBytes int64             `json:"state_bytes"` // of a place of the state store
}

// Output says where a result is to be found.
type Output struct {
	Path string `json:"path"` // from the journal's directory; PATH.partial until it is complete
	Key  string `json:"key,omitempty"`
}

// Input identifies an input tensor.
type Input struct {
	Path   string `json:"path"` // links followed
	Key    string `json:"key,omitempty"`
	Size   int64  `json:"size"` // of the file
	MTime  int64  `json:"mtime_ns"`
	Offset int64  `json:"offset"` // of the first element
	Head   uint32 `json:"head"`   // checksum of the file's first bytes
}

// Differences lists what a run's header says differently, one line each.
func (h Header) Differences(now Header) (list []string) {
	a, b := flat(h), flat(now)
	for _, k := range slices.Sorted(func(yield func(string) bool) {
		for k := range a {
			if !yield(k) {
				return
			}
		}
		for k := range b {
			if _, both := a[k]; !both && !yield(k) {
				return
			}
		}
	}) {
		if !reflect.DeepEqual(a[k], b[k]) {
			list = append(list, fmt.Sprintf("%s: %v then, %v now", k, orNothing(a[k]), orNothing(b[k])))
		}
	}
	return list
}

func orNothing(x any) any {
	if x == nil {
		return "nothing"
	}
	return x
}

// flat lists the leaves of a header by their path.
func flat(h Header) map[string]any {
	var doc any
	text, err := json.Marshal(h)
	if err == nil {
		d := json.NewDecoder(bytes.NewReader(text))
		d.UseNumber()
		err = d.Decode(&doc)
	}
	if err != nil {
		panic(fmt.Sprintf("stream: encode a header: %v", err)) // nothing in it can fail to
	}
	leaves := make(map[string]any)
	var walk func(path []string, x any)
	walk = func(path []string, x any) {
		switch x := x.(type) {
		case map[string]any:
			for k, v := range x {
				walk(append(path[:len(path):len(path)], k), v)
			}
		case []any:
			for i, v := range x {
				walk(append(path[:len(path):len(path)], fmt.Sprint(i)), v)
			}
		default:
			leaves[strings.ToLower(strings.Join(path, "."))] = x
		}
	}
	walk(nil, doc)
	return leaves
}

// beginning is the end of the name of a journal that has not its own yet.
const beginning = ".new"

// Sizes of the format. See the package comment.
const (
	magic        = "scqsajnl"
	journalAge   = 1 // version of the format
	prefixBytes  = 32
	recordBytes  = 64
	mostHeader   = 1 << 20
	hostNameMost = 16
)

// kind of a record.
type kind uint8

const (
	kindSession    kind = iota + 1 // a process began
	kindState                      // the state of a query chunk is in a place
	kindDone                       // the results of a query chunk are in the output
	kindCheckpoint                 // all that was told before, by this shard, is on the disk
	kindComplete                   // all results are in the output, and on the disk
)

// record is a record of a journal.
type record struct {
	kind  kind
	shard uint16
	group uint32
	chunk uint32
	pairs uint32  // kindState: chunk pairs in it
	place uint32  // kindState
	sum   uint32  // of the state, or of the rows of the result
	time  int64   // nanoseconds since 1970, for people
	work  float64 // (query row, key) pairs done, over all heads and shards
	spent float64 // seconds of this process; not kindState
	bytes int64   // kindState: of the state
	pid   uint32  // kindSession
	host  string  // kindSession

	number uint64 // where it was read: its index
}

// encode is what the record is in a journal: see the package comment.
func (r record) encode(id, number uint64) []byte {
	b := make([]byte, recordBytes)
	b[4] = byte(r.kind)
	binary.LittleEndian.PutUint16(b[6:], r.shard)
	binary.LittleEndian.PutUint64(b[8:], number)
	for i, x := range []uint32{r.group, r.chunk, r.pairs, r.place, r.sum, r.pid} {
		binary.LittleEndian.PutUint32(b[16+4*i:], x)
	}
	binary.LittleEndian.PutUint64(b[40:], uint64(r.time))
	binary.LittleEndian.PutUint64(b[48:], math.Float64bits(r.work))
	binary.LittleEndian.PutUint64(b[56:], math.Float64bits(r.spent))
	switch r.kind {
	case kindState:
		binary.LittleEndian.PutUint64(b[56:], uint64(r.bytes))
	case kindSession:
		copy(b[48:], make([]byte, hostNameMost))
		copy(b[48:], r.host)
	}
	binary.LittleEndian.PutUint32(b, recordSum(b, id))
	return b
}

func decode(b []byte, id, number uint64) (r record, ok bool) {
	if binary.LittleEndian.Uint32(b) != recordSum(b, id) || binary.LittleEndian.Uint64(b[8:]) != number {
		return r, false
	}
	r.kind, r.shard, r.number = kind(b[4]), binary.LittleEndian.Uint16(b[6:]), number
	for i, x := range []*uint32{&r.group, &r.chunk, &r.pairs, &r.place, &r.sum, &r.pid} {
		*x = binary.LittleEndian.Uint32(b[16+4*i:])
	}
	r.time = int64(binary.LittleEndian.Uint64(b[40:]))
	if r.kind == kindSession {
		r.host = string(bytes.TrimRight(b[48:], "\x00"))
		return r, true
	}
	r.work = math.Float64frombits(binary.LittleEndian.Uint64(b[48:]))
	if r.kind == kindState {
		r.bytes = int64(binary.LittleEndian.Uint64(b[56:]))
	} else {
		r.spent = math.Float64frombits(binary.LittleEndian.Uint64(b[56:]))
	}
	return r, r.kind >= kindSession && r.kind <= kindComplete
}

// recordSum covers all of a record but itself, and begins with the journal's id: a
// record of an older journal in reused blocks is none of this one.
func recordSum(b []byte, id uint64) uint32 {
	return crc32.Update(crc32.Checksum(binary.LittleEndian.AppendUint64(nil, id), castagnoli), castagnoli, b[4:recordBytes])
}

// encodeHeader is the beginning of a journal.
func encodeHeader(h Header, id uint64) ([]byte, error) {
	text, err := json.Marshal(h)
	if err != nil {
		return nil, err
	}
	b := append([]byte(magic), make([]byte, prefixBytes-len(magic))...)
	binary.LittleEndian.PutUint32(b[8:], journalAge)
	binary.LittleEndian.PutUint32(b[12:], uint32(len(text)))
	binary.LittleEndian.PutUint64(b[16:], id)
	b = append(b, text...)
	binary.LittleEndian.PutUint32(b[24:], headerSum(b))
	return append(b, make([]byte, -len(b)&(recordBytes-1))...), nil
}

// headerSum covers the header but for its own sum and the padding.
func headerSum(b []byte) uint32 {
	return crc32.Update(crc32.Checksum(b[:24], castagnoli), castagnoli, b[28:])
}

// CorruptError says where a journal is damaged.
type CorruptError struct {
	Path   string
	Offset int64
	What   string
}

func (e *CorruptError) Error() string {
	return fmt.Sprintf("journal %s is damaged at offset %d: %s", e.Path, e.Offset, e.What)
}

// Log is what a journal tells.
type Log struct {
	Path    string
	Header  Header
	Records int
	Ignored int64 // bytes after the last record that count for nothing

	Complete bool      // all results are in the output
	Pid      int       // of the process that wrote last
	Host     string    // where that ran, at most 16 bytes
	Began    time.Time // when it began
	Written  time.Time // the last record
	Saved    time.Time // the last checkpoint; zero if there was none
	Work     float64   // (query row, key) pairs done, over all heads
	Spent    float64   // seconds of the process that wrote last
	WorkAt   float64   // Work when it began

	first int64          // where the first record is
	facts []record       // states and results, in order
	safe  map[uint16]int // by shard: so many of the facts were told before its last checkpoint
}

// Total is the number of (query row, key) pairs of the whole run.
func (l *Log) Total() float64 { return totalPairs(l.Header.Problem) }

// ReadJournal reads a journal. Whatever follows its last whole record was being written
// when its process ended, and is left out; damage before that is a CorruptError.
func ReadJournal(path string) (*Log, error) { return readJournal(osDisk{}, path) }

func readJournal(d disk, path string) (*Log, error) {
	f, err := d.open(path, os.O_RDONLY)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	size, err := f.Size()
	if err != nil {
		return nil, fmt.Errorf("read journal %s: %w", path, err)
	}
	l := &Log{Path: path}
	first, id, err := l.readHeader(f, size)
	if err != nil {
		return nil, err
	}
	l.first, l.safe = first, make(map[uint16]int)
	return l, l.readRecords(f, first, size, id)
}

func (l *Log) readHeader(f io.ReaderAt, size int64) (end int64, id uint64, err error) {
	corrupt := func(at int64, format string, args ...any) (int64, uint64, error) {
		return 0, 0, &CorruptError{l.Path, at, fmt.Sprintf(format, args...)}
	}
	b := make([]byte, min(size, prefixBytes+mostHeader))
	if err := attention.ReadFull(f, b, 0); err != nil {
		return 0, 0, fmt.Errorf("read journal %s: %w", l.Path, err)
	}
	if len(b) < prefixBytes || string(b[:8]) != magic {
		return corrupt(0, "no journal begins like this")
	}
	if v := binary.LittleEndian.Uint32(b[8:]); v != journalAge {
		return corrupt(8, "format %d, this program reads %d", v, journalAge)
	}
	n := int64(binary.LittleEndian.Uint32(b[12:]))
	if n > mostHeader || prefixBytes+n > int64(len(b)) {
		return corrupt(12, "a header of %d bytes in a file of %d", n, size)
	}
	b = b[:prefixBytes+n]
	if binary.LittleEndian.Uint32(b[24:]) != headerSum(b) {
		return corrupt(24, "the header's checksum is wrong")
	}
	if err := json.Unmarshal(b[prefixBytes:], &l.Header); err != nil {
		return corrupt(prefixBytes, "%v", err)
	}
	return (prefixBytes + n + recordBytes - 1) / recordBytes * recordBytes, binary.LittleEndian.Uint64(b[16:]), nil
}

// readRecords reads records up to the first that is not whole. What was told before a
// checkpoint was on the disk then: if one follows the first bad record, it was damaged.
func (l *Log) readRecords(f io.ReaderAt, at, size int64, id uint64) error {
	end := int64(-1) // of the records
	var b [recordBytes]byte
	for n := uint64(0); at+recordBytes <= size; n, at = n+1, at+recordBytes {
		if err := attention.ReadFull(f, b[:], at); err != nil {
			return fmt.Errorf("read journal %s at %d: %w", l.Path, at, err)
		}
		r, ok := decode(b[:], id, n)
		switch {
		case ok && end < 0:
			l.take(r)
		case ok && (r.kind == kindCheckpoint || r.kind == kindComplete):
			return &CorruptError{l.Path, end, "a record is not as it was written"}
		case !ok && end < 0:
			end = at
		}
	}
	if end < 0 {
		end = at
	}
	l.Ignored = size - end
	return nil
}

// take adds a record.
func (l *Log) take(r record) {
	l.Records++
	l.Written = time.Unix(0, r.time)
	switch r.kind {
	case kindSession:
		l.Pid, l.Host, l.Began, l.WorkAt, l.Spent = int(r.pid), r.host, l.Written, l.Work, 0
		return
	case kindState, kindDone:
		l.facts = append(l.facts, r)
	case kindCheckpoint:
		l.Saved, l.safe[r.shard] = l.Written, len(l.facts)
	case kindComplete:
		l.Complete, l.Saved = true, l.Written
	}
	l.Work = r.work
	if r.kind != kindState {
		l.Spent = r.spent
	}
}

// journalDelay is for how long facts are only held: a run that is over by then needs no
// journal, whose syncs would cost it more than its work.
const journalDelay = time.Second

// journal is a journal that is being written. Several shards may write to it.
type journal struct {
	path   string
	disk   disk
	outs   []string // paths of the outputs, that is of their partial files
	header Header
	start  time.Time
	work   func() float64 // pairs done, over all heads and shards

	commits sync.Mutex // held while a shard makes durable what it has

	mu     sync.Mutex
	held   []record // facts, while there is no file
	file   file
	id     uint64
	at     int64
	number uint64
	failed error // the first: after it nobody knows what the disk has, and nothing is told
}

// begin writes a journal and then puts it in the place of an older one: there is never
// half of one. It tells of what was on the disk before this process, then of the process,
// and of what it has done.
// What it says is safe must be so by its name too: those of outputs are made durable first,
// those of state stores are whenever these are synced.
func (j *journal) begin(before, since []record) error {
	for i, path := range j.outs {
		if i > 0 && filepath.Dir(path) == filepath.Dir(j.outs[0]) {
			continue
		}
		if err := j.disk.syncDir(path); err != nil {
			return fmt.Errorf("sync the directory of %s: %w", path, err)
		}
	}
	if err := j.create(before, since); err != nil {
		return fmt.Errorf("create journal %s: %w", j.path, err)
	}
	return nil
}

func (j *journal) create(before, since []record) (err error) {
	j.id = rand.Uint64()
	b, err := encodeHeader(j.header, j.id)
	if err != nil {
		return err
	}
	f, err := j.disk.open(j.path+beginning, os.O_RDWR|os.O_CREATE|os.O_TRUNC)
	if err != nil {
		return err
	}
	defer func() {
		if j.file == nil { // the first error is the one to report
			_ = f.Close()
			_ = j.disk.remove(j.path + beginning)
		}
	}()
	host, _ := os.Hostname() // for people only
	session := record{kind: kindSession, pid: uint32(os.Getpid()), host: host[:min(len(host), hostNameMost)]}
	j.stamp(&session)
	for _, r := range slices.Concat(before, []record{session}, since) {
		b = append(b, r.encode(j.id, j.number)...)
		j.number++
	}
	j.at = int64(len(b))
	if _, err := f.WriteAt(b, 0); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if err := j.disk.rename(j.path+beginning, j.path); err != nil {
		return err
	}
	j.file, j.held = f, nil
	return j.disk.syncDir(j.path)
}

func (j *journal) stamp(r *record) {
	now := time.Now()
	r.time, r.work = now.UnixNano(), j.work()
	r.spent = now.Sub(j.start).Seconds()
}

// tell appends a record. It is on the disk after the next commit.
func (j *journal) tell(r record) error {
	j.stamp(&r)
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.failed == nil {
		j.failed = j.append(r)
	}
	return j.failed
}

func (j *journal) append(r record) error {
	if j.file == nil {
		if j.held = append(j.held, r); time.Since(j.start) < journalDelay {
			return nil
		}
		return j.begin(nil, j.held)
	}
	if _, err := j.file.WriteAt(r.encode(j.id, j.number), j.at); err != nil {
		return fmt.Errorf("write journal %s: %w", j.path, err)
	}
	j.at += recordBytes
	j.number++
	return nil
}

// commit makes durable what was told: by a function what the records are about, then the
// records, and then r, which says that all these are on the disk. Shards do that one after
// the other. After an error none does: the outputs are everybody's, and when a sync has
// failed the next one may succeed though nothing is on the disk.
func (j *journal) commit(r record, sync func() error) error {
	j.commits.Lock()
	defer j.commits.Unlock()
	err := j.broken()
	if err == nil {
		err = sync()
	}
	j.stamp(&r)
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.failed == nil {
		if err == nil {
			err = j.seal(r)
		}
		j.failed = err
	}
	return j.failed
}

// seal makes all records durable, and then one that says so. Nothing is told meanwhile.
func (j *journal) seal(r record) error {
	if j.file == nil {
		return j.begin(nil, append(j.held, r))
	}
	if err := j.sync(); err != nil {
		return err
	}
	if err := j.append(r); err != nil {
		return err
	}
	return j.sync()
}

func (j *journal) sync() error {
	if err := j.file.Sync(); err != nil {
		return fmt.Errorf("sync journal %s: %w", j.path, err)
	}
	return nil
}

func (j *journal) broken() error {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.failed
}

// begun says whether there is a journal on the disk.
func (j *journal) begun() bool { return j != nil && j.file != nil }

// complete says that all results are in the outputs, and durable. A run that never had
// a file needs none now.
func (j *journal) complete(t Tensors) error {
	if !j.begun() {
		return nil
	}
	return j.commit(record{kind: kindComplete}, t.sync)
}

func (j *journal) close() error {
	if j == nil || j.file == nil {
		return nil
	}
	if err := j.file.Close(); err != nil {
		return fmt.Errorf("close journal %s: %w", j.path, err)
	}
	return nil
}

// RemoveJournal removes a journal for good: its output is complete, or is given up. With it
// goes one that a process was beginning when it was killed. That there is none is no error.
func RemoveJournal(path string) error { return removeJournal(osDisk{}, path) }

func removeJournal(d disk, path string) error {
	removed := false
	for _, name := range []string{path + beginning, path} {
		err := d.remove(name)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("remove the journal: %w", err)
		}
		removed = removed || err == nil
	}
	if !removed {
		return nil
	}
	if err := d.syncDir(path); err != nil {
		return fmt.Errorf("remove the journal %s: %w", path, err)
	}
	return nil
}
