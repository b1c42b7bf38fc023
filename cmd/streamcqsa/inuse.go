package main

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"unicode"

	"github.com/streamcqsa/streamcqsa/pkg/tensorfile"
)

// worker is the process that works on an output.
type worker struct {
	pid     int    // 0: the system doesn't say
	command string // its command line; empty if the system doesn't say
}

// workerOf says which process has a partial file, if one has.
func workerOf(partial string) (w worker, held bool, err error) {
	w.pid, held, err = tensorfile.Holder(partial)
	if err != nil {
		return w, false, fmt.Errorf("ask who writes %s: %w", partial, err)
	}
	w.command = commandOf(w.pid)
	return w, held, nil
}

func (w worker) String() string {
	switch {
	case w.pid == 0:
		return "another process, on another machine or in another container"
	case w.command == "":
		return fmt.Sprintf("process %d", w.pid)
	}
	return fmt.Sprintf("process %d: %s", w.pid, w.command)
}

// commandOf is the command line of a process of this machine, shortened to a part of a
// line; empty where there is no telling.
func commandOf(pid int) string {
	if pid <= 0 {
		return ""
	}
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil {
		return "" // it is over, or this system has no such file
	}
	text := strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) { // arguments end with a zero
			return ' '
		}
		return r
	}, strings.ToValidUTF8(string(b), "?"))
	text = strings.TrimSpace(text)
	if most := 160; len(text) > most {
		text = strings.ToValidUTF8(text[:most], "") + "..."
	}
	return text
}

// inUse adds to the error that another process works on an output which one that is. Other
// errors stay as they are.
func inUse(s tensorfile.OutSpec, err error) error {
	if !errors.Is(err, tensorfile.ErrInUse) {
		return err
	}
	if w, held, e := workerOf(partialOf(s)); e == nil && held && w.pid > 0 {
		return fmt.Errorf("%w (%v)", err, w)
	}
	return err
}
