"""Expert dispatch and combine between the ranks of an expert-parallel group."""
