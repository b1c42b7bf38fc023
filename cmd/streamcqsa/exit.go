package main

import (
	"errors"
	"fmt"
	"io/fs"
	"strings"

	"github.com/streamcqsa/streamcqsa/pkg/gpu"
	"github.com/streamcqsa/streamcqsa/pkg/stream"
	"github.com/streamcqsa/streamcqsa/pkg/tensorfile"
)

// Exit codes. Scripts rely on them: they only ever grow.
const (
	exitOther     = 1
	exitUsage     = 2
	exitInput     = 3
	exitNoFit     = 4
	exitTemporary = 5
	exitVerify    = 6
	exitDuration  = 10
)

var exitCodes = []struct {
	code int
	what string
}{
	{0, "done"},
	{exitOther, "other failure"},
	{exitUsage, "usage: the command line asks for something that can't be"},
	{exitInput, "bad input file"},
	{exitNoFit, "does not fit the memory budget or the disk; the message says what would"},
	{exitTemporary, "temporary: a retry, or another machine, may help"},
	{exitVerify, "verify found a difference, or damage"},
	{exitDuration, "stopped by --max-duration; the same command continues"},
	{130, "stopped by SIGINT; the same command continues"},
	{134, "crashed: a bug"},
	{138, "stopped by SIGUSR1; the same command continues"},
	{143, "stopped by SIGTERM; the same command continues"},
}

// exitHelp is the table for help texts.
func exitHelp() string {
	var b strings.Builder
	b.WriteString("Exit codes:\n")
	for _, e := range exitCodes {
		fmt.Fprintf(&b, "  %3d  %s\n", e.code, e.what)
	}
	return strings.TrimSuffix(b.String(), "\n")
}

var (
	errUsage     = errors.New("usage")
	errInput     = errors.New("bad input")
	errNoFit     = errors.New("does not fit")
	errTemporary = errors.New("temporary")
	errCommit    = errors.New("result not in its place")
	errVerify    = errors.New("verification failed")
)

// classified is an error of one of the classes above: the class chooses the
// exit code and is not part of the message.
type classified struct {
	error
	class error
}

func (c classified) Unwrap() []error { return []error{c.error, c.class} }

func classify(class, err error) error { return classified{err, class} }

func usagef(format string, args ...any) error {
	return classify(errUsage, fmt.Errorf(format, args...))
}

func inputf(format string, args ...any) error {
	return classify(errInput, fmt.Errorf(format, args...))
}

// exitCode is the one place where errors become exit codes.
func exitCode(err error) int {
	var sig stopSignal
	var noFit *stream.NoFitError
	var noDisk *stream.NoDiskError
	var damaged *stream.CorruptError
	var scarce *gpu.NoMemoryError
	var device gpu.DeviceError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &sig):
		return 128 + int(sig.sig)
	case errors.Is(err, errDuration):
		return exitDuration
	case errors.Is(err, errVerify):
		return exitVerify
	case errors.Is(err, errUsage), errors.Is(err, stream.ErrRequest):
		return exitUsage
	case errors.Is(err, errInput), errors.Is(err, tensorfile.ErrFormat), errors.Is(err, tensorfile.ErrChanged), errors.Is(err, stream.ErrMismatch), errors.As(err, &damaged):
		return exitInput
	case errors.As(err, &noFit), errors.As(err, &noDisk), errors.Is(err, errNoFit), errors.Is(err, tensorfile.ErrNoSpace), stream.IsNoSpace(err):
		return exitNoFit
	case errors.Is(err, errTemporary), errors.Is(err, tensorfile.ErrInUse), errors.As(err, &scarce), errors.As(err, &device):
		return exitTemporary
	case errors.Is(err, errCommit):
		return exitOther
	case errors.Is(err, fs.ErrNotExist):
		return exitInput
	}
	return exitOther
}
