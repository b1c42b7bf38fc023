package main

import (
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// Every flag says what it is for, has a twin in the environment that no other
// flag has, and takes its own default back.
func TestFlags(t *testing.T) {
	for _, cmd := range newRootCommand().Commands() {
		twins := make(map[string]string)
		cmd.Flags().VisitAll(func(f *pflag.Flag) {
			if strings.TrimSpace(f.Usage) == "" {
				t.Errorf("%s --%s: no help", cmd.Name(), f.Name)
			}
			if other := twins[envName(f.Name)]; other != "" {
				t.Errorf("%s: --%s and --%s share %s", cmd.Name(), f.Name, other, envName(f.Name))
			}
			twins[envName(f.Name)] = f.Name
			if f.Value.Type() != "int64Slice" { // which writes brackets that it does not read
				if err := f.Value.Set(f.DefValue); err != nil {
					t.Errorf("%s --%s does not take its default %q: %v", cmd.Name(), f.Name, f.DefValue, err)
				}
			}
		})
	}
}

// Commands that plan the same problem take the same flags: a run does what a
// plan with its flags says.
func TestSharedFlags(t *testing.T) {
	commands := make(map[string]*cobra.Command)
	for _, c := range newRootCommand().Commands() {
		commands[c.Name()] = c
	}
	same := func(a, b string, except ...string) {
		commands[a].Flags().VisitAll(func(f *pflag.Flag) {
			g := commands[b].Flags().Lookup(f.Name)
			switch {
			case strings.Contains(" "+strings.Join(except, " ")+" ", " "+f.Name+" "):
			case g == nil:
				t.Errorf("%s has --%s, %s does not", a, f.Name, b)
			case g.Usage != f.Usage || g.DefValue != f.DefValue || g.Value.Type() != f.Value.Type():
				t.Errorf("%s and %s disagree on --%s", a, b, f.Name)
			}
		})
	}
	same("plan", "run", "svg", "json", "lse")
	same("run", "plan", "out", "lse", "state-dir", "prefetch", "json", "quiet", "checkpoint-every", "max-duration", "restart")
	same("verify", "run", "o", "lse", "rows", "seed", "tol", "journal", "json")
}
