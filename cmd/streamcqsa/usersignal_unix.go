//go:build unix

package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"
)

// watchUserSignals stops a run at SIGUSR1, which batch systems send before they take a
// machine away, and asks how far it is at SIGUSR2.
func watchUserSignals(stop context.CancelCauseFunc, ask func()) (quit func()) {
	ch := make(chan os.Signal, 4)
	signal.Notify(ch, syscall.SIGUSR1, syscall.SIGUSR2)
	go func() {
		for s := range ch {
			if s == syscall.SIGUSR1 {
				stop(stopSignal{syscall.SIGUSR1})
			} else {
				ask()
			}
		}
	}()
	return func() { signal.Stop(ch); close(ch) }
}
