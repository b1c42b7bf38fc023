// Command streamcqsa computes exact attention over tensor files that fit
// neither the device nor, at the limit, RAM.
package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"
)

func main() {
	// A crash of the Go runtime would exit with 2, which means usage here: end
	// with SIGABRT (134) instead.
	debug.SetTraceback("crash")
	ctx, stop := withSignals(context.Background())
	defer stop()
	code := execute(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

// execute runs one command line and returns the exit code.
func execute(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	root := newRootCommand()
	root.SetArgs(args)
	root.SetIn(stdin)
	root.SetOut(stdout)
	root.SetErr(stderr)
	err := root.ExecuteContext(ctx)
	if err != nil {
		fmt.Fprintf(stderr, "streamcqsa: %v\n", err)
	}
	return exitCode(err)
}

// stopSignal is why a context ended: a signal.
type stopSignal struct{ sig syscall.Signal }

func (s stopSignal) Error() string { return fmt.Sprintf("stopped by %v", s.sig) }

// withSignals returns a context that the first SIGINT or SIGTERM cancels; the
// second one ends the process at once.
func withSignals(parent context.Context) (ctx context.Context, stop func()) {
	ctx, cancel := context.WithCancelCause(parent)
	ch := make(chan os.Signal, 2)
	signal.Notify(ch, syscall.SIGINT, syscall.SIGTERM)
	quit := make(chan struct{})
	go func() {
		for n := 0; ; n++ {
			select {
			case s := <-ch:
				sig := s.(syscall.Signal)
				if n > 0 {
					os.Exit(128 + int(sig))
				}
				cancel(stopSignal{sig})
			case <-quit:
				return
			}
		}
	}()
	var done bool
	return ctx, func() {
		if !done {
			done = true
			signal.Stop(ch)
			close(quit)
			cancel(nil)
		}
	}
}
