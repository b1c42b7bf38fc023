//go:build !unix

package main

import "context"

// watchUserSignals: the system has no signals for users.
func watchUserSignals(context.CancelCauseFunc, func()) (quit func()) { return func() {} }
