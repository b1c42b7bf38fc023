package main

import (
	"errors"
	"reflect"
	"strings"
	"testing"

	"github.com/streamcqsa/streamcqsa/pkg/gpu"
)

func TestParseDevice(t *testing.T) {
	for s, want := range map[string]deviceChoice{
		"auto":                 {},
		"cpu":                  {cpu: true},
		"cuda":                 {cuda: true, list: []int{0}},
		"cuda:0":               {cuda: true, list: []int{0}},
		"cuda:7":               {cuda: true, list: []int{7}},
		"cuda:all":             {cuda: true, all: true},
		"cuda:1,cuda:0,cuda:3": {cuda: true, list: []int{1, 0, 3}},
	} {
		if got, err := parseDevice(s); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s: %+v, %v", s, got, err)
		}
	}
	for s, want := range map[string]string{
		"":                `"" is not a device`,
		"tpu":             `"tpu" is not a device`,
		"gpu:0":           `"gpu:0" is not a device`,
		"cuda:":           `"cuda:" is not a device`,
		"cuda:x":          `"cuda:x" is not a device`,
		"cuda:-1":         `"cuda:-1" is not a device`,
		"cuda:+1":         `"cuda:+1" is not a device`,
		"cuda:99999":      `"cuda:99999" is not a device`,
		"cuda:0,1":        `"1" is not a device`,
		"cuda:0,":         `"" is not a device`,
		"cuda, cuda:1":    `"cuda" is not a device`,
		"cuda:0,cpu":      "cpu can't be part of a list",
		"cuda:0,cuda:all": "cuda:all can't be part of a list",
		"cuda:1,cuda:1":   "cuda:1 is there twice",
	} {
		if _, err := parseDevice(s); !errors.Is(err, errUsage) || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v; want %s", s, err, want)
		}
	}
}

func TestChooseDevices(t *testing.T) {
	have := []gpu.Info{{Ordinal: 0}, {Ordinal: 1}, {Ordinal: 2}}
	for s, want := range map[string][]int{"cuda": {0}, "cuda:all": {0, 1, 2}, "cuda:2,cuda:0": {2, 0}} {
		c, err := parseDevice(s)
		if err != nil {
			t.Fatal(err)
		}
		chosen, err := c.choose(have)
		var got []int
		for _, d := range chosen {
			got = append(got, d.Ordinal)
		}
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s: %v, %v", s, got, err)
		}
	}
	if _, err := (deviceChoice{cuda: true, list: []int{3}}).choose(have); err == nil || !strings.Contains(err.Error(), "no cuda:3: this machine has 3 CUDA devices") {
		t.Errorf("a device too many: %v", err)
	}
}
