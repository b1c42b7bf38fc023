package unit

import (
	"encoding/json"
	"maps"
	"strings"
	"testing"
	"testing/fstest"
)

// sources are two units and what they include, not compiled.
func sources() fstest.MapFS {
	return fstest.MapFS{
		"a.cu":        {Data: []byte("#include <cstdint>\n#include \"one.cuh\"\n  # include \"sub/two.cuh\"\n")},
		"b_sm90.cu":   {Data: []byte("int b;\n")},
		"one.cuh":     {Data: []byte("#pragma once\n#include \"sub/two.cuh\"\n")},
		"sub/two.cuh": {Data: []byte("#pragma once\n#include \"../one.cuh\"\n")},
		"other.cuh":   {Data: []byte("int other;\n")},
	}
}

func hash(t *testing.T, dir fstest.MapFS, name, compiler string) string {
	t.Helper()
	h, err := Hash(dir, name, compiler)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

func TestHash(t *testing.T) {
	want := hash(t, sources(), "a", "13.0.88")
	for name, same := range map[string]bool{"a.cu": false, "one.cuh": false, "sub/two.cuh": false, "other.cuh": true, "b_sm90.cu": true} {
		dir := sources()
		dir[name].Data = append(dir[name].Data, '\n')
		if got := hash(t, dir, "a", "13.0.88"); (got == want) != same {
			t.Errorf("%s changed: same is %t, want %t", name, got == want, same)
		}
	}
	if hash(t, sources(), "a", "13.1.0") == want {
		t.Error("another compiler makes no difference")
	}
	dir := sources()
	delete(dir, "sub/two.cuh")
	if _, err := Hash(dir, "a", "13.0.88"); err == nil || !strings.Contains(err.Error(), "sub/two.cuh") {
		t.Errorf("an included file is missing: %v", err)
	}
}

func TestTarget(t *testing.T) {
	for name, want := range map[string]string{"a": "sm_80", "b_sm90": "sm_90a"} {
		if got := Target(name); got != want || !strings.Contains(strings.Join(Flags(name), " "), "code="+map[string]string{"sm_80": "[sm_80,compute_80]", "sm_90a": "sm_90a"}[want]) {
			t.Errorf("%s is for %s, with %q", name, got, Flags(name))
		}
	}
}

// compiled are the sources with a manifest that is right.
func compiled(t *testing.T) fstest.MapFS {
	t.Helper()
	dir := sources()
	m := Manifest{Compiler: "13.0.88"}
	for _, name := range []string{"a", "b_sm90"} {
		image := []byte("code of " + name)
		dir[Image(name)] = &fstest.MapFile{Data: image}
		m.Units = append(m.Units, Compiled{Name: name, Target: Target(name), Sources: hash(t, dir, name, m.Compiler), Image: Sum(image)})
	}
	data, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	dir[File] = &fstest.MapFile{Data: data}
	return dir
}

func TestCheck(t *testing.T) {
	good := compiled(t)
	if err := Check(good); err != nil {
		t.Fatal(err)
	}
	for what, change := range map[string]func(fstest.MapFS){
		"a source":          func(dir fstest.MapFS) { dir["b_sm90.cu"] = &fstest.MapFile{Data: []byte("int c;\n")} },
		"an included file":  func(dir fstest.MapFS) { dir["one.cuh"] = &fstest.MapFile{} },
		"compiled code":     func(dir fstest.MapFS) { dir[Image("a")] = &fstest.MapFile{Data: []byte("other")} },
		"no compiled code":  func(dir fstest.MapFS) { delete(dir, Image("a")) },
		"a new unit":        func(dir fstest.MapFS) { dir["c.cu"] = &fstest.MapFile{} },
		"a unit less":       func(dir fstest.MapFS) { delete(dir, "a.cu") },
		"another name":      func(dir fstest.MapFS) { dir["c.cu"] = dir["a.cu"]; delete(dir, "a.cu") },
		"no manifest":       func(dir fstest.MapFS) { delete(dir, File) },
		"a broken manifest": func(dir fstest.MapFS) { dir[File] = &fstest.MapFile{Data: []byte("{")} },
		"an empty manifest": func(dir fstest.MapFS) { dir[File] = &fstest.MapFile{Data: []byte("{}")} },
	} {
		dir := maps.Clone(good)
		change(dir)
		if err := Check(dir); err == nil {
			t.Errorf("%s: no error", what)
		}
	}
}

func TestManifestHash(t *testing.T) {
	m, err := Read(compiled(t))
	if err != nil {
		t.Fatal(err)
	}
	before := m.Hash()
	m.Units[1].Image = Sum(nil)
	if len(before) != 64 || m.Hash() == before {
		t.Errorf("hashes are %s and %s", before, m.Hash())
	}
}
