//! PubMedQA
