// Package unit knows what the compiled kernels are made from: translation units
// (*.cu) with what they include, the compiler, and its flags.
package unit

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io/fs"
	"maps"
	"path"
	"regexp"
	"slices"
	"strings"
)

// Folder holds what was compiled, and File what it was compiled from.
const (
	Folder = "kernels"
	File   = Folder + "/manifest.json"
)

// Manifest describes the compiled kernels.
type Manifest struct {
	Compiler string     `json:"compiler"` // nvcc's version: 13.0.88
	Units    []Compiled `json:"units"`    // by name
}

// Compiled is one unit as it was compiled.
type Compiled struct {
	Name    string `json:"name"`
	Target  string `json:"target"`
	Sources string `json:"sources"` // Hash of what it was compiled from
	Image   string `json:"image"`   // SHA-256 of the file in Folder, in hexadecimal
}

// Image is the path of a compiled unit: a compressed fatbin.
func Image(name string) string { return Folder + "/" + name + ".fatbin" }

// Read reads the manifest.
func Read(dir fs.FS) (Manifest, error) {
	var m Manifest
	data, err := fs.ReadFile(dir, File)
	if err != nil {
		return m, err
	}
	if err := json.Unmarshal(data, &m); err != nil {
		return m, fmt.Errorf("%s: %w", File, err)
	}
	return m, nil
}

// Find returns what the manifest says of a unit.
func (m Manifest) Find(name string) (Compiled, bool) {
	i := slices.IndexFunc(m.Units, func(c Compiled) bool { return c.Name == name })
	if i < 0 {
		return Compiled{}, false
	}
	return m.Units[i], true
}

// Hash identifies all the compiled code: SHA-256, in hexadecimal.
func (m Manifest) Hash() string {
	h := sha256.New()
	for _, u := range m.Units {
		fmt.Fprintf(h, "%s %s %s\n", u.Name, u.Sources, u.Image)
	}
	return hex.EncodeToString(h.Sum(nil))
}

// List names the units in dir, in order.
func List(dir fs.FS) ([]string, error) {
	names, err := fs.Glob(dir, "*.cu")
	for i, n := range names {
		names[i] = strings.TrimSuffix(n, ".cu")
	}
	return names, err
}

// Target is the architecture that a unit is for. NAME_sm90.cu uses instructions that
// only Hopper has. Everything else runs on Ampere and, compiled by the driver, on
// all that came after.
func Target(name string) string {
	if strings.HasSuffix(name, "_sm90") {
		return "sm_90a"
	}
	return "sm_80"
}

// Flags are the compiler's flags for a unit.
func Flags(name string) []string {
	code := "arch=compute_80,code=[sm_80,compute_80]"
	if Target(name) == "sm_90a" {
		code = "arch=compute_90a,code=sm_90a"
	}
	return []string{"-std=c++17", "-O3", "-fatbin", "--compress-mode=size", "-gencode", code}
}

// Hash is the SHA-256, in hexadecimal, of all that a unit is compiled from.
func Hash(dir fs.FS, name, compiler string) (string, error) {
	files := map[string][]byte{}
	if err := collect(dir, name+".cu", files); err != nil {
		return "", err
	}
	h := sha256.New()
	fmt.Fprintf(h, "nvcc %s\n%q\n", compiler, Flags(name))
	for _, f := range slices.Sorted(maps.Keys(files)) {
		fmt.Fprintf(h, "%s %d\n%s", f, len(files[f]), files[f])
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

var include = regexp.MustCompile(`(?m)^[ \t]*#[ \t]*include[ \t]*"([^"]+)"`)

// collect adds a file and what it includes with quotes, which is ours. What is
// included with brackets comes with the compiler.
func collect(dir fs.FS, name string, files map[string][]byte) error {
	if _, ok := files[name]; ok {
		return nil
	}
	data, err := fs.ReadFile(dir, name)
	if err != nil {
		return err
	}
	files[name] = data
	for _, m := range include.FindAllSubmatch(data, -1) {
		if err := collect(dir, path.Join(path.Dir(name), string(m[1])), files); err != nil {
			return fmt.Errorf("included in %s: %w", name, err)
		}
	}
	return nil
}

// Check fails if what was compiled is not what the sources in dir make, as far as
// can be told without compiling.
func Check(dir fs.FS) error {
	m, err := Read(dir)
	if err != nil {
		return err
	}
	names, err := List(dir)
	if err != nil {
		return err
	}
	if len(names) != len(m.Units) {
		return fmt.Errorf("there are %d units and %d were compiled", len(names), len(m.Units))
	}
	for _, name := range names {
		if !Current(dir, m, name) {
			return fmt.Errorf("%s.cu or what it includes has changed since %s was compiled", name, Image(name))
		}
	}
	return nil
}

// Current reports whether a unit was compiled from what is in dir now, by the
// manifest's compiler, and is whole.
func Current(dir fs.FS, m Manifest, name string) bool {
	c, ok := m.Find(name)
	if !ok {
		return false
	}
	sources, err := Hash(dir, name, m.Compiler)
	if err != nil || sources != c.Sources {
		return false
	}
	image, err := fs.ReadFile(dir, Image(name))
	return err == nil && Sum(image) == c.Image
}

// Sum is the SHA-256 of data, in hexadecimal.
func Sum(data []byte) string {
	s := sha256.Sum256(data)
	return hex.EncodeToString(s[:])
}
