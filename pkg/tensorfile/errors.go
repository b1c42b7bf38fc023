package tensorfile

import (
	"errors"
	"fmt"
	"io/fs"
	"strings"
)

// Input: the file is not what it should be.
var (
	// ErrFormat is inside every error about the content of a file: a header
	// that can't be parsed, a type or order that isn't supported, a size that
	// isn't the one the header promises, a missing key.
	ErrFormat = errors.New("bad tensor file")

	// ErrChanged: an input is not the file that was opened any more.
	ErrChanged = errors.New("file changed while in use")
)

// Output.
var (
	// ErrNoSpace: the space of an output can't be reserved.
	ErrNoSpace = errors.New("not enough disk space")

	// ErrInUse: another process is writing the same output.
	ErrInUse = errors.New("output is being written by another process")
)

// A FormatError says what is wrong with a file. It is an ErrFormat.
type FormatError struct {
	Path   string
	Key    string // of the tensor, in a safetensors file
	Offset int64  // byte of the file at which the problem was seen; -1: none in particular
	What   string // a sentence
	Found  string // what the file has, and
	Want   string // what was expected; either may be empty
}

func (e *FormatError) Error() string {
	var b strings.Builder
	b.WriteString(e.Path)
	if e.Key != "" {
		fmt.Fprintf(&b, ":%s", clip(e.Key))
	}
	b.WriteString(": ")
	if e.Offset >= 0 {
		fmt.Fprintf(&b, "offset %d: ", e.Offset)
	}
	b.WriteString(e.What)
	if e.Found != "" {
		b.WriteString(": found " + e.Found)
	}
	if e.Want != "" {
		if e.Found == "" {
			b.WriteString(":")
		} else {
			b.WriteString(",")
		}
		b.WriteString(" want " + e.Want)
	}
	return b.String()
}

func (e *FormatError) Unwrap() error { return ErrFormat }

// withPath completes the error of a parser, which knows bytes and no names.
func withPath(err error, path string) error {
	var fe *FormatError
	if errors.As(err, &fe) {
		fe.Path = path
	}
	return err
}

// withoutPath is the cause of an error of an open file's, for who says himself which file.
func withoutPath(err error) error {
	var pe *fs.PathError
	if errors.As(err, &pe) {
		return pe.Err
	}
	return err
}

// clip shortens text from a file, which may be megabytes of anything, for a
// message on one line.
func clip(s string) string {
	const most = 64
	cut := len(s) > most
	if cut {
		s = strings.ToValidUTF8(s[:most], "")
	}
	q := fmt.Sprintf("%q", s)
	q = q[1 : len(q)-1]
	if cut {
		q += "..."
	}
	return q
}

// A NoSpaceError says how much was missing. It is an ErrNoSpace.
type NoSpaceError struct {
	Path string
	Need int64 // bytes
	Free int64 // bytes; -1: unknown
}

func (e *NoSpaceError) Error() string {
	free := "free space unknown"
	if e.Free >= 0 {
		free = fmt.Sprintf("%d bytes free", e.Free)
	}
	return fmt.Sprintf("reserve %s: %v: %d bytes needed, %s", e.Path, ErrNoSpace, e.Need, free)
}

func (e *NoSpaceError) Unwrap() error { return ErrNoSpace }
