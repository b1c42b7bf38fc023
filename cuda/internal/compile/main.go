// Command compile compiles the units in the folder cuda that have changed.
//
//	compile -nvcc PATH [-dir cuda] [-all] [-v]
package main

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"sync"

	"github.com/streamcqsa/streamcqsa/cuda/internal/unit"
)

func main() {
	var c compiler
	flag.StringVar(&c.nvcc, "nvcc", "nvcc", "the compiler")
	flag.StringVar(&c.dir, "dir", "cuda", "folder of the sources")
	all := flag.Bool("all", false, "compile what has not changed too")
	flag.BoolVar(&c.verbose, "v", false, "print what each kernel takes: registers, shared memory, spills")
	flag.Parse()
	if err := c.run(*all); err != nil {
		fmt.Fprintln(os.Stderr, "compile:", err)
		os.Exit(1)
	}
}

type compiler struct {
	nvcc    string
	version string
	dir     string
	verbose bool
}

func (c *compiler) run(all bool) error {
	var err error
	if c.version, err = version(c.nvcc); err != nil {
		return err
	}
	dir := os.DirFS(c.dir)
	names, err := unit.List(dir)
	if err != nil {
		return err
	}
	old, err := unit.Read(dir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if err := os.MkdirAll(filepath.Join(c.dir, unit.Folder), 0o777); err != nil {
		return err
	}
	compiled := make([]unit.Compiled, len(names))
	errs := make([]error, len(names))
	free := make(chan struct{}, runtime.NumCPU())
	var wg sync.WaitGroup
	for i, name := range names {
		if !all && old.Compiler == c.version && unit.Current(dir, old, name) {
			compiled[i], _ = old.Find(name)
			continue
		}
		wg.Go(func() {
			free <- struct{}{}
			defer func() { <-free }()
			compiled[i], errs[i] = c.compile(name)
		})
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		return err
	}
	return c.write(unit.Manifest{Compiler: c.version, Units: compiled})
}

var release = regexp.MustCompile(`, V([0-9.]+)`)

func version(nvcc string) (string, error) {
	out, err := exec.Command(nvcc, "--version").Output()
	if err != nil {
		return "", fmt.Errorf("%s --version: %w", nvcc, err)
	}
	m := release.FindSubmatch(out)
	if m == nil {
		return "", fmt.Errorf("%s --version names no version: %q", nvcc, out)
	}
	return string(m[1]), nil
}

// compile compiles one unit. The sources are hashed before, so that a change
// meanwhile shows as one.
func (c *compiler) compile(name string) (unit.Compiled, error) {
	sources, err := unit.Hash(os.DirFS(c.dir), name, c.version)
	if err != nil {
		return unit.Compiled{}, err
	}
	image, err := c.image(name)
	if err != nil {
		return unit.Compiled{}, err
	}
	if err := os.WriteFile(filepath.Join(c.dir, unit.Image(name)), image, 0o666); err != nil {
		return unit.Compiled{}, err
	}
	fmt.Printf("%s for %s: %d bytes\n", name, unit.Target(name), len(image))
	return unit.Compiled{Name: name, Target: unit.Target(name), Sources: sources, Image: unit.Sum(image)}, nil
}

// image runs the compiler in the sources' folder, so that the result doesn't
// depend on where that is.
func (c *compiler) image(name string) ([]byte, error) {
	temp, err := os.MkdirTemp("", "compile")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(temp)
	result := filepath.Join(temp, name)
	args := append(unit.Flags(name), "-o", result, name+".cu")
	if c.verbose {
		args = append(args, "-Xptxas=-v")
	}
	cmd := exec.Command(c.nvcc, args...)
	cmd.Dir = c.dir
	out, err := cmd.CombinedOutput()
	if err != nil {
		return nil, fmt.Errorf("%s.cu: nvcc: %w\n%s", name, err, out)
	}
	if serialized.Match(out) {
		return nil, fmt.Errorf("%s.cu: the compiler waits after every wgmma:\n%s", name, out)
	}
	os.Stdout.Write(out)
	return os.ReadFile(result)
}

// serialized finds the remark about kernels that are correct, but slow.
var serialized = regexp.MustCompile(`wgmma\S* instructions are serialized`)

// write writes the manifest, and removes what it doesn't list.
func (c *compiler) write(m unit.Manifest) error {
	keep := []string{unit.File}
	for _, u := range m.Units {
		keep = append(keep, unit.Image(u.Name))
	}
	have, err := filepath.Glob(filepath.Join(c.dir, unit.Folder, "*"))
	if err != nil {
		return err
	}
	for _, path := range have {
		if !slices.Contains(keep, unit.Folder+"/"+filepath.Base(path)) {
			if err := os.Remove(path); err != nil {
				return err
			}
		}
	}
	data, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(c.dir, unit.File), append(data, '\n'), 0o666)
}
