module github.com/streamcqsa/streamcqsa/pkg/divide/_search

go 1.26
