//go:build cuda

package driver

// Thread is a goroutine locked to an OS thread to which a context is current.
type Thread struct {
	work chan func()
	done chan struct{}
}

// NewThread starts a thread.
func (c *Context) NewThread() (*Thread, error) {
	t := &Thread{work: make(chan func()), done: make(chan struct{})}
	started := make(chan error)
	go t.run(c, started)
	if err := <-started; err != nil {
		return nil, err
	}
	return t, nil
}

func (t *Thread) run(c *Context, started chan<- error) {
	defer close(t.done)
	release, err := c.Bind()
	started <- err
	if err != nil {
		return
	}
	defer release()
	for f := range t.work {
		f()
	}
}

// Do runs f on the thread, after everything that was given to it before, and
// returns f's error. f must not call Do of the same thread.
func (t *Thread) Do(f func() error) error {
	result := make(chan error, 1)
	t.work <- func() { result <- f() }
	return <-result
}

// Close ends the thread when what it was given is done. Do must not be called
// afterwards.
func (t *Thread) Close() {
	close(t.work)
	<-t.done
}
