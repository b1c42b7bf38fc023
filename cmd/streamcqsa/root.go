package main

import (
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// newRootCommand builds a fresh command tree, so that tests can run many.
func newRootCommand() *cobra.Command {
	root := &cobra.Command{
		Use:   "streamcqsa",
		Short: "Exact attention over tensor files larger than memory",
		Long: `streamcqsa computes exact attention, softmax(scale Q K^T + mask) V, from tensor
files to a tensor file, under a memory budget. The files may be larger than the
device, and larger than RAM.

  streamcqsa plan --shape 1,8,1000000,64 --dtype f32 --mem-budget 2GiB
  streamcqsa run --q q.npy --k k.npy --v v.npy -o o.npy --layout bhnd --mem-budget 2GiB
  streamcqsa verify --q q.npy --k k.npy --v v.npy --o o.npy --layout bhnd

Every flag has a twin in the environment: --mem-budget is also
STREAMCQSA_MEM_BUDGET. The flag wins.

` + exitHelp(),
		SilenceErrors:     true,
		SilenceUsage:      true,
		PersistentPreRunE: func(cmd *cobra.Command, _ []string) error { return fromEnvironment(cmd.Flags()) },
		RunE:              func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
		Version:           version().Version,
	}
	root.SetVersionTemplate("streamcqsa {{.Version}}\n")
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return classify(errUsage, err) })
	root.AddCommand(newPlanCommand(), newRunCommand(), newStatusCommand(), newVerifyCommand(), newInspectCommand(),
		newDevicesCommand(), newGenCommand(), newBenchCommand(), newVersionCommand())
	root.InitDefaultCompletionCmd()
	markUsage(root)
	return root
}

// noArgs refuses what is neither a flag nor a command.
func noArgs(cmd *cobra.Command, args []string) error {
	switch {
	case len(args) == 0:
		return nil
	case cmd.HasAvailableSubCommands():
		return fmt.Errorf("unknown command %q for %s", args[0], cmd.CommandPath())
	}
	return fmt.Errorf("%s takes flags only, found the argument %q", cmd.Name(), args[0])
}

// markUsage makes wrong arguments of a command and of those below it exit as
// wrong flags do.
func markUsage(c *cobra.Command) {
	for _, sub := range c.Commands() {
		markUsage(sub)
	}
	args := c.Args
	if args == nil || c.HasAvailableSubCommands() || c.ValidArgsFunction != nil {
		args = noArgs
	}
	if !c.Runnable() { // cobra would ignore arguments and succeed
		c.RunE = func(cmd *cobra.Command, _ []string) error { return cmd.Help() }
	}
	c.Args = func(cmd *cobra.Command, list []string) error {
		if err := args(cmd, list); err != nil {
			return classify(errUsage, err)
		}
		return nil
	}
}

const envPrefix = "STREAMCQSA_"

// envName is the environment twin of a flag.
func envName(flag string) string {
	return envPrefix + strings.ToUpper(strings.ReplaceAll(flag, "-", "_"))
}

// fromEnvironment sets the flags that the command line left alone.
func fromEnvironment(flags *pflag.FlagSet) error {
	var first error
	flags.VisitAll(func(f *pflag.Flag) {
		if f.Changed || f.Name == "help" || f.Name == "version" || first != nil {
			return
		}
		v, ok := os.LookupEnv(envName(f.Name))
		if !ok {
			return
		}
		if err := flags.Set(f.Name, v); err != nil {
			first = usagef("%s: %w", envName(f.Name), err)
		}
	})
	return first
}
